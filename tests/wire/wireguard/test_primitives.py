import pytest
from hypothesis import given
from hypothesis import strategies as st

from overlay.errors import LocalProtocolError, RemoteProtocolError
from overlay.wire.wireguard import primitives

KEY = bytes(range(0x80, 0xA0))
SUNSCREEN = (
    b"Ladies and Gentlemen of the class of '99: "
    b"If I could offer you only one tip for the future, sunscreen would be it."
)


@pytest.mark.parametrize(
    ("key", "input_", "outputs"),
    [
        (
            b"test-key",
            b"test-input",
            (
                "6f0e5ad38daba1bea8a0d213688736f19763239305e0f58aba697f9ffc41c633",
                "df1194df20802a4fe594cde27e92991c8cae66c366e8106aaa937a55fa371e8a",
                "fac6e2745a325f5dc5d11a5b165aad08b0ada28e7b4e666b7c077934a4d76c24",
            ),
        ),
        (
            b"wireguard",
            b"wireguard",
            (
                "491d43bbfdaa8750aaf535e334ecbfe5129967cd64635101c566d4caefda96e8",
                "1e71a379baefd8a79aa4662212fcafe19a23e2b609a3db7d6bcba8f560e3d25f",
                "31e1ae48bddfbe5de38f295e5452b1909a1b4e38e183926af3780b0c1e1f0160",
            ),
        ),
        (
            b"",
            b"",
            (
                "8387b46bf43eccfcf349552a095d8315c4055beb90208fb1be23b894bc2ed5d0",
                "58a0e5f6faefccf4807bff1f05fa8a9217945762040bcec2f4b4a62bdfe0e86e",
                "0ce6ea98ec548f8e281e93e32db65621c45eb18dc6f0a7ad94178610a2f7338e",
            ),
        ),
    ],
)
def test_kdf_gives_the_published_vectors(key: bytes, input_: bytes, outputs: tuple[str, str, str]) -> None:
    expected = tuple(map(bytes.fromhex, outputs))
    assert primitives.kdf1(key, input_) == expected[0]
    assert primitives.kdf2(key, input_) == expected[:2]
    assert primitives.kdf3(key, input_) == expected


def test_hash_is_blake2s_of_rfc_7693() -> None:
    assert primitives.hash_(b"abc").hex() == "508c5e8c327c14e2e1a72ba34eeb452f37458b209ed63a294d999b4c86675982"
    assert primitives.hash_(b"a", b"", b"bc") == primitives.hash_(b"abc")


def test_mac_is_keyed_blake2s_and_not_hmac() -> None:
    assert len(primitives.mac(KEY, b"x")) == 16
    assert primitives.mac(KEY, b"x") != primitives.hmac_(KEY, b"x")[:16]


ALICE = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
BOB = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
ALICE_PUBLIC = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
BOB_PUBLIC = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")


def test_x25519_gives_the_vectors_of_rfc_7748() -> None:
    assert primitives.public_key(ALICE) == ALICE_PUBLIC
    assert primitives.public_key(BOB) == BOB_PUBLIC
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert primitives.dh(ALICE, BOB_PUBLIC).hex() == shared
    assert primitives.dh(BOB, ALICE_PUBLIC).hex() == shared


def test_clamping_changes_the_bits_that_rfc_7748_names_and_no_public_key() -> None:
    clamped = primitives.clamp(b"\xff" * 32)
    assert clamped == b"\xf8" + b"\xff" * 30 + b"\x7f"
    assert primitives.public_key(clamped) == primitives.public_key(b"\xff" * 32)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        b"\xec" + b"\xff" * 30 + b"\x7f",
    ],
)
def test_a_point_of_low_order_is_refused(point: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        primitives.dh(ALICE, point)
    assert caught.value.reason == "low_order_point"


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_of_a_wrong_size_never_reach_the_library(size: int) -> None:
    with pytest.raises(LocalProtocolError):
        primitives.dh(bytes(size), ALICE_PUBLIC)
    with pytest.raises(LocalProtocolError):
        primitives.dh(ALICE, bytes(size))
    with pytest.raises(LocalProtocolError):
        primitives.public_key(bytes(size))
    with pytest.raises(LocalProtocolError):
        primitives.clamp(bytes(size))


def test_xaead_gives_the_vector_of_the_xchacha_draft_appendix_a_3_1() -> None:
    nonce = bytes(range(0x40, 0x58))
    aad = bytes.fromhex("50515253c0c1c2c3c4c5c6c7")
    sealed = primitives.xaead_seal(KEY, nonce, SUNSCREEN, aad)
    assert sealed.hex() == (
        "bd6d179d3e83d43b9576579493c0e939572a1700252bfaccbed2902c21396cbb731c7f1b0b4aa6440bf3a82f4eda7e39ae64c6708c54c2"
        "16cb96b72e1213b4522f8c9ba40db5d945b11b69b982c1bb9e3f3fac2bc369488f76b2383565d3fff921f9664c97637da9768812f615c6"
        "8b13b52ec0875924c1c7987947deafd8780acf49"
    )
    assert primitives.xaead_open(KEY, nonce, sealed, aad) == SUNSCREEN


def test_aead_opens_the_vector_of_rfc_8439_appendix_a_5() -> None:
    # Its nonce is 00000000 0102030405060708: the four zero bytes and a little-endian counter, as WireGuard has it.
    key = bytes.fromhex("1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0")
    sealed = bytes.fromhex(
        "64a0861575861af460f062c79be643bd5e805cfd345cf389f108670ac76c8cb24c6cfc18755d43eea09ee94e382d26b0bdb7b73c321b01"
        "00d4f03b7f355894cf332f830e710b97ce98c8a84abd0b948114ad176e008d33bd60f982b1ff37c8559797a06ef4f0ef61c186324e2b35"
        "06383606907b6a7c02b0f9f6157b53c867e4b9166c767b804d46a59b5216cde7a4e99040c5a40433225ee282a1b0a06c523eaf4534d7f8"
        "3fa1155b0047718cbc546a0d072b04b3564eea1b422273f548271a0bb2316053fa76991955ebd63159434ecebb4e466dae5a1073a67276"
        "27097a1049e617d91d361094fa68f0ff77987130305beaba2eda04df997b714d6c6f2c29a6ad5cb4022b02709b"
        "eead9d67890cbb22392336fea1851f38"
    )
    aad = bytes.fromhex("f33388860000000000004e91")
    plaintext = primitives.aead_open(key, 0x0807060504030201, sealed, aad)
    assert plaintext.startswith(b"Internet-Drafts are draft documents valid for a maximum of six months")
    assert primitives.aead_seal(key, 0x0807060504030201, plaintext, aad) == sealed


@given(st.binary(max_size=64), st.binary(max_size=32), st.integers(0, 2**64 - 1), st.data())
def test_a_changed_byte_is_a_bad_tag(plaintext: bytes, aad: bytes, counter: int, data: st.DataObject) -> None:
    sealed = bytearray(primitives.aead_seal(KEY, counter, plaintext, aad))
    sealed[data.draw(st.integers(0, len(sealed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError) as caught:
        primitives.aead_open(KEY, counter, bytes(sealed), aad)
    assert caught.value.reason == "bad_tag"
    nonce = counter.to_bytes(24, "little")
    crossed = bytearray(primitives.xaead_seal(KEY, nonce, plaintext, aad))
    crossed[data.draw(st.integers(0, len(crossed) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(RemoteProtocolError):
        primitives.xaead_open(KEY, nonce, bytes(crossed), aad)


@given(st.binary(max_size=15))
def test_less_than_a_tag_is_a_bad_tag(ciphertext: bytes) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        primitives.aead_open(KEY, 0, ciphertext, b"")
    assert caught.value.reason == "bad_tag"
    with pytest.raises(RemoteProtocolError) as caught:
        primitives.xaead_open(KEY, bytes(24), ciphertext, b"")
    assert caught.value.reason == "bad_tag"


def test_equal_compares() -> None:
    assert primitives.equal(b"abc", b"abc")
    assert not primitives.equal(b"abc", b"abd")
    assert not primitives.equal(b"abc", b"ab")
