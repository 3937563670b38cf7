"""A reader of a Borealis repository, written from docs/formats alone and from no other code.

    python3 read.py repository-1 > repository-1/expected.json

It is the second witness of the format pages: what it reads is what the tests expect the program to
read. Needs the packages `cryptography` and the program `zstd`. For small repositories: no floors.
"""

import base64
import hashlib
import hmac
import json
import os
import struct
import subprocess
import sys

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

ROOT = sys.argv[1]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def hkdf(key, salt, info):
    prk = hmac.new(salt or bytes(32), key, hashlib.sha256).digest()
    return hmac.new(prk, info + b"\x01", hashlib.sha256).digest()


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at


def message(data):
    """Fields by number, each a list of integers or bytes."""
    fields, at = {}, 0
    while at < len(data):
        tag, at = varint(data, at)
        if tag & 7 == 0:
            value, at = varint(data, at)
        elif tag & 7 == 2:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        else:
            raise ValueError("wire type")
        fields.setdefault(tag >> 3, []).append(value)
    return fields


def signed(value):
    return value >> 1 ^ -(value & 1)


class M:
    def __init__(self, data):
        self.fields = message(data)

    def num(self, n, default=0):
        return self.fields.get(n, [default])[-1]

    def sint(self, n, default=0):
        return signed(self.fields[n][-1]) if n in self.fields else default

    def raw(self, n):
        return self.fields.get(n, [b""])[-1]

    def text(self, n):
        return self.raw(n).decode()

    def all(self, n):
        return self.fields.get(n, [])

    def kind(self):
        (number, values), = self.fields.items()
        return number, M(values[-1])


class Object:
    def __init__(self, name, kind):
        data = open(os.path.join(ROOT, "repository", name), "rb").read()
        assert data[:8] == b"BOREALIS" and data[-4:] == b"BEND", name
        version, found, features, length, crc = struct.unpack("<HHIII", data[8:24])
        assert (version, found, features) == (1, kind, 0), name
        head = data[24 : 24 + length]
        assert crc32c(data[:20] + head) == crc, name
        assert crc32c(data[:-8]) == struct.unpack("<I", data[-8:-4])[0], name
        self.digest = hashlib.sha256(data[: 24 + length]).digest()
        fields = M(head)
        self.id, self.key, self.clear = fields.raw(1), fields.raw(2), M(fields.raw(4))
        self.clear_bytes, self.len = fields.raw(4), len(data)
        self.frames, at = [], 24 + length
        for line in fields.all(3):
            line = M(line)
            self.frames.append((line, data[at : at + line.num(1)]))
            at += line.num(1)
        assert at + 8 == len(data), name

    def frame(self, keys, number):
        line, stored = self.frames[number]
        key = hkdf(keys[self.key], self.id, b"borealis object key v1")
        place = struct.pack(">I", number)
        plain = AESGCM(key).decrypt(bytes(8) + place, stored, self.digest + place)
        if line.num(3) == 1:
            plain = subprocess.run(["zstd", "-dc"], input=plain, capture_output=True, check=True).stdout
        assert len(plain) == line.num(2)
        return plain


def key_id(key):
    return hkdf(key, b"", b"borealis key id v1")[:16]


def unwrap(key, purpose, owner, subject, wrap):
    data = bytes([len(purpose)]) + purpose + owner + subject
    return AESGCM(hkdf(key, b"", b"borealis wrap v1")).decrypt(wrap.raw(2), wrap.raw(3), data)


def ring(name, wrapping):
    found = Object(name, 2)
    body, owner = found.clear, found.clear.raw(1)
    wrap = next(w for w in map(M, body.all(3)) if w.raw(1) == key_id(wrapping))
    owner_key = unwrap(wrapping, b"owner key", owner, wrap.raw(1), wrap)
    code = body.raw(6)
    uncoded = found.clear_bytes[: -len(code) - 2]
    ring_key = hkdf(owner_key, b"", b"borealis key ring code v1")
    assert hmac.new(ring_key, uncoded, hashlib.sha256).digest() == code
    keys = {w.raw(1): unwrap(owner_key, b"data key", owner, w.raw(1), w) for w in map(M, body.all(4))}
    assert body.raw(5) in keys
    return owner, owner_key, keys


def root_key():
    lines = [l for l in open(os.path.join(ROOT, "root.key")) if l.strip() and not l.startswith("#")]
    assert lines[0] == "borealis-key-file 1\n"
    assert int(lines[3].split(": ")[1], 16) == crc32c("".join(lines[:3]).encode())
    key = base64.b64decode(lines[2].split(": ")[1])
    assert lines[1].split(": ")[1].strip() == key_id(key).hex()
    return key


def entries(name, kind, owner, keys):
    """Every entry of a row, its chain checked; recaps are compared with what they repeat."""
    previous, epoch, number, items = bytes(32), 0, 1, []
    while os.path.exists(os.path.join(ROOT, "repository", name(number))):
        entry = Object(name(number), kind)
        head = entry.clear
        assert (head.raw(1), head.num(2), head.raw(5)) == (owner, number, previous)
        assert head.num(3) >= epoch and len(head.raw(4)) == 16
        assert entry.frames[0][0].num(4) == 1
        body = entry.frame(keys, 0)
        if number % 64 == 0:
            recap = M(entry.frame(keys, len(entry.frames) - 1))
            repeated = [M(item) for item in recap.all(1)]
            assert len(repeated) == 63
            for item, (n, obj, known) in zip(repeated, items[-63:]):
                assert (item.raw(1), item.raw(2)) == (obj.clear_bytes, obj.digest)
                assert (item.num(3), item.raw(4)) == (obj.len, known)
        items.append((number, entry, body))
        previous, epoch, number = entry.digest, head.num(3), number + 1
    return items


def record(data):
    return [M(data).num(1), M(data).num(2)]


def main():
    repository, repository_key, catalog_keys = ring("keys/%012d" % 1, root_key())
    assert Object("repository", 1).clear.raw(1) == repository
    (_, _, body), = entries(lambda n: "catalog/%012d" % n, 3, repository, catalog_keys)
    kind, cluster = M(body).kind()
    assert kind == 1
    lineage = cluster.raw(2)
    base = "lineages/%s/" % lineage.hex()
    owner, _, keys = ring(base + "keys/%012d" % 1, repository_key)
    assert owner == lineage
    epoch = Object(base + "epochs/%012d" % 1, 4)
    assert (epoch.clear.raw(1), epoch.clear.num(2)) == (lineage, 1)
    holder = M(epoch.frame(keys, 0))
    ledger = entries(lambda n: base + "ledger/%012d/%012d" % (n // 4096, n), 5, lineage, keys)
    last, counts, log_unit = {}, {}, 0
    for number, entry, body in ledger:
        kind, fields = M(body).kind()
        last[kind] = (number, entry, fields)
        counts[kind] = counts.get(kind, 0) + 1
    log_unit = last[1][2].num(2)
    number, entry, piece = last[2]
    log = entry.frame(keys, 1)
    backup, settled, gap, branch = (last[n][2] for n in (3, 4, 5, 6))
    manifest = M(backup.raw(1))
    pins = {}
    for n, _, body in entries(lambda n: base + "pins/%012d" % n, 8, lineage, keys):
        kind, fields = M(body).kind()
        if kind == 1:
            pins[n] = fields
        else:
            del pins[fields.num(2)]
    pin_number, pin = max(pins.items())
    tags = {M(tag).text(1): M(tag).text(2) for tag in pin.all(7)}
    print(json.dumps({
        "repository": repository.hex(),
        "cluster": {"name": cluster.text(1), "engine": cluster.text(3)},
        "head": ledger[-1][0],
        "head_digest": ledger[-1][1].digest.hex(),
        "log_unit": log_unit,
        "holder": [holder.text(1), holder.num(2), holder.num(3), holder.text(4), holder.text(5)],
        "counts": [counts[n] for n in (2, 3, 4, 5)],
        "piece": [number, entry.clear.sint(6), piece.num(2), piece.num(3), piece.sint(4, None), piece.sint(5, None),
                  record(piece.raw(6)), piece.num(7), entry.len],
        "log": [len(log), log[0]],
        "base_backup": [manifest.raw(1).hex(), manifest.raw(2).hex(), manifest.num(3), backup.num(3), backup.num(4),
                        backup.sint(5), backup.sint(6), backup.num(7), backup.num(8), backup.num(9)],
        "settled": [settled.sint(2), record(settled.raw(3))],
        "gap": [gap.num(2), gap.num(3), gap.text(4)],
        "branch": [branch.num(2), branch.num(3), branch.text(4)],
        "retired": last[7][2].text(1),
        "pins": len(pins),
        "pin": [pin_number, pin.text(1), [pin.num(3), pin.num(4)], pin.sint(5, None), pin.text(6), tags],
    }, indent=1))


main()
