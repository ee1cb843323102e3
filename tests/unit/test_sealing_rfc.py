"""RFC vectors, against the reference implementation and against what the product uses."""

import numpy as np
import pytest
from confide.codec.digest import upload_digest
from confide.codec.keystream import Keystream
from confide.sealing.primitives import keys
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests import sealing_reference as reference

h = bytes.fromhex


def test_x25519_rfc_7748_section_6_1() -> None:
    alice = h("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = h("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice_public = h("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    bob_public = h("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    shared = h("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
    assert keys.public_of(alice) == reference.x25519(alice, reference.BASE_POINT) == alice_public
    assert keys.public_of(bob) == reference.x25519(bob, reference.BASE_POINT) == bob_public
    assert keys.agree(alice, bob_public) == keys.agree(bob, alice_public) == shared
    assert reference.x25519(alice, bob_public) == shared


def test_hkdf_rfc_5869_appendix_a_1() -> None:
    output = reference.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert output == h("3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865")
    salt = bytes(range(32))
    for names in ((), ("hospital-a",), ("hospital-a", "hospital-b")):
        wanted = reference.hkdf(b"secret", salt, reference.info("pairwise-mask", *names))
        assert keys.derive(b"secret", salt=salt, label="pairwise-mask", names=names) == wanted


def test_aes_256_ctr_sp_800_38a_f_5_5() -> None:
    key = h("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    stream = reference.aes256(key, h("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"))
    plain = h("6bc1bee22e409f96e93d7e117393172a")
    assert bytes(a ^ b for a, b in zip(stream, plain, strict=True)) == h("601ec313775789a5b7a7f504bbf3d228")
    for dtype in ("<u2", "<u4"):
        made = Keystream(key).fill(np.empty(100, dtype=dtype)).tobytes()
        assert made == reference.keystream(key, len(made))


def test_ed25519_rfc_8032_section_7_1() -> None:
    seed = h("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = h("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    signature = h(
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe"
        "24655141438e7a100b"
    )
    assert reference.ed25519_public(seed) == public
    assert reference.ed25519_sign(seed, b"") == Ed25519PrivateKey.from_private_bytes(seed).sign(b"") == signature
    assert reference.ed25519_verify(public, b"", signature)
    assert not reference.ed25519_verify(public, b"x", signature)


def test_chacha20_poly1305_rfc_8439_section_2_3_2_and_round_trip() -> None:
    block = reference.chacha20(bytes(range(32)), 1, h("000000090000004a00000000"))
    assert block.startswith(h("10f1e7e4d13b5915500fdd1fa32071c4"))
    for length in (0, 1, 63, 64, 65, 300):
        plain = bytes(i % 251 for i in range(length))
        data = ChaCha20Poly1305(bytes(range(32))).encrypt(bytes(12), plain, b"associated")
        assert reference.chacha20poly1305_open(bytes(range(32)), bytes(12), data, b"associated") == plain


@pytest.mark.parametrize(
    ("length", "wanted"),
    [
        (0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"),
        (1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"),
        (1023, "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11"),
        (1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"),
        (1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"),
        (3073, "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3"),
        (7169, "a003fc7a51754a9b3c7fae0367ab3d782dccf28855a03d435f8cfe74605e7817"),
    ],
)
def test_blake3_published_vectors(length: int, wanted: str) -> None:
    data = bytes(i % 251 for i in range(length))
    assert reference.blake3(data).hex() == upload_digest(data).hex() == wanted
