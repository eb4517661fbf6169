"""Programs that set-up installs as root: where they are, or that the test is left out (on CI that is a failure)."""

import os
import shutil
from pathlib import Path

import pytest

STREAM_MODULE = Path(__file__).parents[1] / ".venv/lab/libnginx-mod-stream/usr/lib/nginx/modules/ngx_stream_module.so"


def program(name: str) -> str:
    """Its path; skips the test where it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed")
    return path


def nginx_command(folder: Path, http: str, *, stream: str = "", connections: int = 64) -> list[str]:
    """What runs an nginx of its own in the foreground, all of it in `folder`. `http` and
    `stream`: its servers, as in nginx.conf."""
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"    {kind}_temp_path {folder}/{kind};" for kind in kinds)
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = folder / "nginx.conf"
    streams = f"load_module {STREAM_MODULE};\nstream {{{stream}}}" if stream else ""
    configuration.write_text(f"""
daemon off;
master_process off;
{user}
pid {folder}/nginx.pid;
{streams}
events {{ worker_connections {connections}; }}
http {{
    access_log off;
{temporary}
{http}
}}
""")
    return [program("nginx"), "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
