"""How fast is it: measures ours, the bare network below it, and others like it, in the same run, in turn.

`scripts/bench` runs it. It may know the lab and the ways to start each program; it knows nothing of their insides.

    contenders, rivals   what is measured: each joins two machines; daemon starts what the others run on them
    load, machine        how: iperf3, ping, /proc
    runner, suites/      what is asked, in which order
    result               samples, medians, ratios
    report, chart        how it is shown
"""
