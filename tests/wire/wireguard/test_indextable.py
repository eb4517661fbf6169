from overlay.wire.wireguard.indextable import IndexTable


def test_an_index_in_use_is_not_given_again() -> None:
    draws = iter([b"\x07\0\0\0", b"\x07\0\0\0", b"\x08\0\0\0", b"\x07\0\0\0"])
    table = IndexTable[str](lambda size: next(draws))
    assert table.allocate("a") == 7
    assert table.allocate("b") == 8
    assert (table.owner(7), table.owner(8), table.owner(9)) == ("a", "b", None)
    table.release(7)
    assert table.owner(7) is None
    assert table.allocate("c") == 7
    assert len(table) == 2
