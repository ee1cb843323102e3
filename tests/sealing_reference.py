"""A slow, obvious, independent implementation of docs/sealing.md, from the RFCs and with nothing of the product's code.

It reads tests/vectors/sealing.json and checks a slot from the outside: signatures, shares, masks, sums. Only Python's
hashlib and hmac are used.

Sources: X25519 RFC 7748 section 5, Ed25519 RFC 8032 section 5.1, HKDF RFC 5869, AES-256 FIPS 197 and CTR mode NIST
SP 800-38A section 6.5, ChaCha20-Poly1305 RFC 8439, BLAKE3 O'Connor et al. 2020.
"""

import hashlib
import hmac
from collections.abc import Sequence

# ---------------------------------------------------------------- hashing


def hash_fields(domain: str, *fields: bytes) -> bytes:
    data = b""
    for field in (domain.encode(), *fields):
        data += len(field).to_bytes(8, "big") + field
    return hashlib.sha256(data).digest()


_BLAKE3_IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_BLAKE3_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8


def _blake3_compress(value: Sequence[int], block: bytes, counter: int, flags: int) -> list[int]:
    words = [int.from_bytes(block.ljust(64, b"\0")[i : i + 4], "little") for i in range(0, 64, 4)]
    v = [*value, *_BLAKE3_IV[:4], counter & 0xFFFFFFFF, counter >> 32, len(block), flags]

    def turn(x: int, places: int) -> int:
        return (x >> places | x << (32 - places)) & 0xFFFFFFFF

    def mix(a: int, b: int, c: int, d: int, x: int, y: int) -> None:
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            v[a] = (v[a] + v[b] + word) & 0xFFFFFFFF
            v[d] = turn(v[d] ^ v[a], first)
            v[c] = (v[c] + v[d]) & 0xFFFFFFFF
            v[b] = turn(v[b] ^ v[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, words[2 * i], words[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, words[8 + 2 * i], words[9 + 2 * i])
        words = [words[i] for i in _BLAKE3_PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data: bytes) -> bytes:
    """The default 32-byte hash of the BLAKE3 paper, section 2."""

    def node(data: bytes, first_chunk: int, root: int) -> list[int]:
        if len(data) > 1024:
            left = 1024
            while 2 * left < len(data):
                left *= 2
            both = node(data[:left], first_chunk, 0) + node(data[left:], first_chunk + left // 1024, 0)
            block = b"".join(word.to_bytes(4, "little") for word in both)
            return _blake3_compress(_BLAKE3_IV, block, 0, _PARENT | root)
        value: Sequence[int] = _BLAKE3_IV
        blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
        for i, block in enumerate(blocks):
            last = i == len(blocks) - 1
            flags = (_CHUNK_START if i == 0 else 0) | (_CHUNK_END | root if last else 0)
            value = _blake3_compress(value, block, first_chunk, flags)
        return list(value)

    return b"".join(word.to_bytes(4, "little") for word in node(data, 0, _ROOT))


def hkdf(secret: bytes, salt: bytes, info: bytes, length: int = 32) -> bytes:
    key = hmac.new(salt, secret, hashlib.sha256).digest()
    block, output, counter = b"", b"", 1
    while len(output) < length:
        block = hmac.new(key, block + info + bytes([counter]), hashlib.sha256).digest()
        output, counter = output + block, counter + 1
    return output[:length]


def info(label: str, *names: str) -> bytes:
    fields = ["confide/v1/" + label, *names]
    return b"".join(len(field.encode()).to_bytes(2, "big") + field.encode() for field in fields)


# ---------------------------------------------------------------- curve 25519

P = 2**255 - 19


def x25519(scalar: bytes, point: bytes) -> bytes:
    k = int.from_bytes(scalar, "little")
    k = (k & ~7 & ~(1 << 255)) | (1 << 254)
    x1 = int.from_bytes(point, "little") % 2**255
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in range(254, -1, -1):
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        da, cb = d * a, c * b
        x3n, z3n = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        aa, bb = a * a, b * b
        e = aa - bb
        x2, z2, x3, z3 = aa * bb % P, e * (aa + 121665 * e) % P, x3n, z3n
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    return (x2 * pow(z2, P - 2, P) % P).to_bytes(32, "little")


BASE_POINT = (9).to_bytes(32, "little")
D = -121665 * pow(121666, P - 2, P) % P
L = 2**252 + 27742317777372353535851937790883648493
Point = tuple[int, int]


def _recover_x(y: int, sign: int) -> int:
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if x * x % P != square:
        x = x * pow(2, (P - 1) // 4, P) % P
    assert x * x % P == square
    return x if x & 1 == sign else P - x


def _add(a: Point, b: Point) -> Point:
    (x1, y1), (x2, y2) = a, b
    k = D * x1 * x2 * y1 * y2
    return (
        (x1 * y2 + x2 * y1) * pow(1 + k, P - 2, P) % P,
        (y1 * y2 + x1 * x2) * pow(1 - k, P - 2, P) % P,
    )


def _multiply(k: int, point: Point) -> Point:
    result = (0, 1)
    while k:
        if k & 1:
            result = _add(result, point)
        point, k = _add(point, point), k >> 1
    return result


def _decode(data: bytes) -> Point:
    number = int.from_bytes(data, "little")
    y = number % 2**255
    return _recover_x(y, number >> 255), y


def _encode(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


_B_Y = 4 * pow(5, P - 2, P) % P
B = (_recover_x(_B_Y, 0), _B_Y)


def ed25519_public(seed: bytes) -> bytes:
    return _encode(_multiply(_clamped(seed)[0], B))


def _clamped(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    return (int.from_bytes(digest[:32], "little") & ~7 & ~(1 << 255)) | (1 << 254), digest[32:]


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    scalar, prefix = _clamped(seed)
    public = _encode(_multiply(scalar, B))
    r = int.from_bytes(hashlib.sha512(prefix + message).digest(), "little") % L
    start = _encode(_multiply(r, B))
    k = int.from_bytes(hashlib.sha512(start + public + message).digest(), "little") % L
    return start + ((r + k * scalar) % L).to_bytes(32, "little")


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    s = int.from_bytes(signature[32:], "little")
    k = int.from_bytes(hashlib.sha512(signature[:32] + public + message).digest(), "little") % L
    return s < L and _multiply(s, B) == _add(_decode(signature[:32]), _multiply(k, _decode(public)))


def signed(public: bytes, domain: str, body: bytes, signature: bytes) -> bool:
    return ed25519_verify(public, hash_fields("confide/v1/" + domain, body), signature)


# ---------------------------------------------------------------- AES-256-CTR


def _xtime(a: int) -> int:
    return (a << 1) ^ (0x11B if a & 0x80 else 0)


def _gmul(a: int, b: int) -> int:
    product = 0
    while b:
        if b & 1:
            product ^= a
        a, b = _xtime(a), b >> 1
    return product


def _sbox_entry(value: int) -> int:
    inverse = next((x for x in range(256) if _gmul(value, x) == 1), 0)
    result = 0x63
    for shift in range(5):
        result ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
    return result


SBOX = [_sbox_entry(value) for value in range(256)]
MUL2, MUL3 = [_gmul(value, 2) for value in range(256)], [_gmul(value, 3) for value in range(256)]


def _round_keys(key: bytes) -> list[bytes]:
    words, rcon = [key[i : i + 4] for i in range(0, 32, 4)], 1
    for i in range(8, 60):
        word = words[-1]
        if i % 8 == 0:
            word = bytes(SBOX[b] for b in word[1:] + word[:1])
            word = bytes([word[0] ^ rcon]) + word[1:]
            rcon = _xtime(rcon)
        elif i % 8 == 4:
            word = bytes(SBOX[b] for b in word)
        words.append(bytes(a ^ b for a, b in zip(words[i - 8], word, strict=True)))
    return [b"".join(words[i : i + 4]) for i in range(0, 60, 4)]


def aes256(key: bytes, block: bytes) -> bytes:
    return _aes(_round_keys(key), block)


def _aes(keys: list[bytes], block: bytes) -> bytes:
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for number in range(1, 15):
        state = [SBOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]
        if number < 14:
            mixed = []
            for c in range(0, 16, 4):
                a, b, d, e = state[c : c + 4]
                mixed += [
                    MUL2[a] ^ MUL3[b] ^ d ^ e,
                    a ^ MUL2[b] ^ MUL3[d] ^ e,
                    a ^ b ^ MUL2[d] ^ MUL3[e],
                    MUL3[a] ^ b ^ d ^ MUL2[e],
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, keys[number], strict=True)]
    return bytes(state)


def keystream(key: bytes, length: int) -> bytes:
    keys, output = _round_keys(key), b""
    for counter in range(-(-length // 16)):
        output += _aes(keys, counter.to_bytes(16, "big"))
    return output[:length]


# ---------------------------------------------------------------- ChaCha20-Poly1305


def _quarter(s: list[int], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, shift in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = (s[x] + s[y]) & 0xFFFFFFFF
        s[z] ^= s[x]
        s[z] = (s[z] << shift | s[z] >> (32 - shift)) & 0xFFFFFFFF


def chacha20(key: bytes, counter: int, nonce: bytes) -> bytes:
    words = [0x61707865, 0x3320646E, 0x79622D32, 0x6B206574]
    words += [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    words += [counter] + [int.from_bytes(nonce[i : i + 4], "little") for i in range(0, 12, 4)]
    state = list(words)
    for _ in range(10):
        for i in range(4):
            _quarter(state, i, i + 4, i + 8, i + 12)
        for i in range(4):
            _quarter(state, i, (i + 1) % 4 + 4, (i + 2) % 4 + 8, (i + 3) % 4 + 12)
    return b"".join(((a + b) & 0xFFFFFFFF).to_bytes(4, "little") for a, b in zip(state, words, strict=True))


def chacha20poly1305_open(key: bytes, nonce: bytes, data: bytes, associated: bytes) -> bytes:
    ciphertext, tag = data[:-16], data[-16:]
    one_time = chacha20(key, 0, nonce)[:32]
    r = int.from_bytes(one_time[:16], "little") & 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF
    padded = associated + bytes(-len(associated) % 16) + ciphertext + bytes(-len(ciphertext) % 16)
    padded += len(associated).to_bytes(8, "little") + len(ciphertext).to_bytes(8, "little")
    total = 0
    for i in range(0, len(padded), 16):
        total = (total + int.from_bytes(padded[i : i + 16] + b"\x01", "little")) * r % (2**130 - 5)
    made = (total + int.from_bytes(one_time[16:], "little")) % 2**128
    assert made.to_bytes(16, "little") == tag
    stream = b"".join(chacha20(key, 1 + i, nonce) for i in range(-(-len(ciphertext) // 64)))
    return bytes(a ^ b for a, b in zip(ciphertext, stream, strict=False))


# ---------------------------------------------------------------- protobuf, as far as it is needed


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) in order: varints as int, length-delimited as bytes."""
    found: list[tuple[int, int | bytes]] = []
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        if tag & 7 == 0:
            found.append((tag >> 3, varint()))
        else:
            assert tag & 7 == 2
            length = varint()
            found.append((tag >> 3, data[at : at + length]))
            at += length
    return found


def repeated(data: bytes, number: int) -> list[bytes]:
    return [value for field, value in fields(data) if field == number and isinstance(value, bytes)]


def integer(data: bytes, number: int) -> int:
    return next((value for field, value in fields(data) if field == number and isinstance(value, int)), 0)


def bytes_of(data: bytes, number: int) -> bytes:
    return next(iter(repeated(data, number)), b"")


# ---------------------------------------------------------------- shares and lanes

FIELD = 2**256 + 297


def interpolate(points: dict[int, int]) -> int:
    """The polynomial's value at 0."""
    total = 0
    for i, value in points.items():
        weight = 1
        for j in points:
            if i != j:
                weight = weight * j * pow(j - i, -1, FIELD) % FIELD
        total += value * weight
    return total % FIELD


def unpack(data: bytes, lane_bits: int) -> list[int]:
    """Lanes of a packed upload, docs of common/confide/codec/layout.py: groups of 1024, W rows of 1024 / W columns."""
    word = 16 if lane_bits <= 16 else 32
    columns, lanes = 1024 // word, []
    group_bytes = 1024 * lane_bits // 8
    for start in range(0, len(data), group_bytes):
        group = data[start : start + group_bytes]
        words = [int.from_bytes(group[i : i + word // 8], "little") for i in range(0, group_bytes, word // 8)]
        grid = [[0] * columns for _ in range(word)]
        for j in range(columns):
            bits = sum(words[i * columns + j] << (word * i) for i in range(lane_bits))
            for row in range(word):
                grid[row][j] = bits >> (lane_bits * row) & (2**lane_bits - 1)
        lanes += [value for row in grid for value in row]
    return lanes


def mask(seed: bytes, count: int, lane_bits: int) -> list[int]:
    width = 2 if lane_bits <= 16 else 4
    stream = keystream(seed, width * count)
    return [int.from_bytes(stream[i : i + width], "little") for i in range(0, len(stream), width)]


def scalars(lanes: Sequence[int], coordinates: int, count: int, bits: int) -> list[int]:
    """Exact integers after the vector's lanes, digits of base 2^bits, lowest first."""
    digits = -(-32 // bits)
    tail = lanes[coordinates:]
    return [sum(tail[i * digits + j] << (bits * j) for j in range(digits)) for i in range(count)]
