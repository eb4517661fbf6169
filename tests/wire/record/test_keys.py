from hashlib import blake2s

from overlay.wire.record.keys import record_key
from overlay.wire.record.writer import RecordWriter


def test_known_answers() -> None:
    key = bytes(range(32))
    assert record_key(key, "aes-256-gcm") == blake2s(b"overlay record v1 aes-256-gcm", key=key).digest()
    assert record_key(key, "aes-256-gcm").hex() == AES
    assert record_key(key, "chacha20-poly1305").hex() == CHACHA


def test_a_writer_does_not_show_its_key() -> None:
    key = b"a key of 32 bytes, quite secret!"
    writer = RecordWriter(key, "chacha20-poly1305", 1)
    assert "secret" not in repr(writer)


AES = "b39376a782fb00da8789647c4bdbd53eaa3f64b5d0a903435e69160284eae072"
CHACHA = "7e042e4357feacb400af55a0437e776ffae52556190757caa35f1c00b40cfc95"
