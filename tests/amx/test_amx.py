"""The machine code of src/cpu/gemm_amx.c and attend_amx.c, as the build has it, on Bochs's Sapphire Rapids, bit by bit against the same source
over our emulation of the tiles (tiles.h). Run by `make test-amx`, which builds Bochs; needs no processor with AMX.

All calls share one memory, which the machine sees at GUEST and this process wherever it is; arguments are written once for each. The machine
runs them all in one go, so that one fault leaves those behind it without a result, and they fail, too."""

import collections
import ctypes
import os
import pathlib
import struct
import subprocess

import numpy
import pytest

IMAGE = 0x8000  # where amx_guest is linked to
GUEST = 0x1000000  # CALLS_AT of machine.c
PIECE_BYTES = 8 << 20  # a block of Bochs's memory, the most that one file is loaded into rightly
PIECES = 3
MEMORY_BYTES = 46 << 20  # what lies behind the pieces is not loaded, but zero
CALLS_BYTES = 64 * 1024
TIMEOUT_S = 300  # it takes ten seconds
PRODUCT, ATTENTION = 0, 1  # of calls.c
TYPES = {"uint16": 1, "int8": 2}  # bf16, as bits: qr_gemm_type of gemm.h
N_ORDERS = 16  # of gemm_amx.c
KEY_BLOCK, LINE_BYTES, ATTEND_ROWS, ATTEND_RUN = 16, 64, 16, 256  # of kernels.h
EXCEPTIONS = {0: "#DE", 6: "#UD", 7: "#NM", 8: "#DF", 13: "#GP", 14: "#PF", 19: "#XM"}

MACHINE = f"""
config_interface: textconfig
display_library: nogui
cpu: model=sapphire_rapids, count=1, ips=200000000, reset_on_triple_fault=0
memory: guest=64, host=64, block_size={PIECE_BYTES >> 10}
pci: enabled=0
clock: sync=none, time0=1
romimage: file=rom
vgaromimage: file=vgarom
optramimage1: file=image, address={IMAGE:#x}
optramimage2: file=memory0, address={GUEST:#x}
optramimage3: file=memory1, address={GUEST + PIECE_BYTES:#x}
optramimage4: file=memory2, address={GUEST + 2 * PIECE_BYTES:#x}
port_e9_hack: enabled=1
log: log
panic: action=fatal
"""

Call = collections.namedtuple("Call", "what format fields out")


class Memory:
    def __init__(self):
        self.bytes = numpy.zeros(MEMORY_BYTES, numpy.uint8)
        self.used, self.used_behind = CALLS_BYTES, PIECES * PIECE_BYTES
        self.calls = []
        self.shared = {}

    def put(self, values):
        """A copy, at a multiple of 64 bytes, as is all here."""
        array = self._array(self.used, values.shape, values.dtype)
        self.used += (array.nbytes + 63) // 64 * 64
        assert self.used <= PIECES * PIECE_BYTES
        array[...] = values
        return array

    def empty(self, shape, dtype):
        """Zeros."""
        array = self._array(self.used_behind, shape, dtype)
        self.used_behind += (array.nbytes + 63) // 64 * 64
        return array

    def _array(self, at, shape, dtype):
        n_bytes = int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize
        return self.bytes[at : at + n_bytes].view(dtype).reshape(shape)

    def address(self, array, base):
        return array.ctypes.data - self.bytes.ctypes.data + base

    def arguments(self, call, base):
        fields = [self.address(f, base) if isinstance(f, numpy.ndarray) else f for f in call.fields]
        return numpy.frombuffer(struct.pack(call.format, *fields), numpy.uint8)

    def pieces(self):
        """What the machine finds at GUEST: the number of calls, at 64 the calls, arguments and arrays."""
        self.bytes[:8] = numpy.frombuffer(struct.pack("<Q", len(self.calls)), numpy.uint8)
        for i, call in enumerate(self.calls):
            arguments = self.put(self.arguments(call, GUEST))
            entry = struct.pack("<4Q", call.what, self.address(arguments, GUEST), self.address(call.out, GUEST), call.out.nbytes)
            assert 64 + (i + 1) * len(entry) <= CALLS_BYTES
            self.bytes[64 + i * len(entry) :][: len(entry)] = numpy.frombuffer(entry, numpy.uint8)
        return [piece.tobytes() for piece in numpy.split(self.bytes[: PIECES * PIECE_BYTES], PIECES)]


# ---- cases ------------------------------------------------------------------------------------------------------------------------

random = numpy.random.default_rng(1)


def bf16(x):
    """To nearest even, as bits."""
    bits = numpy.ascontiguousarray(x, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(numpy.uint16)


def exact(shape):
    """Multiples of 1/128 of less than one: sums of a thousand products hold all their bits in f32."""
    return bf16(random.integers(-127, 128, shape) / 128)


def rough(shape):
    """Full mantissas over a range of sizes, so that the order of sums shows; among them zeros, subnormal numbers and such that their
    products are."""
    exponents = random.integers(117, 131, shape)
    exponents = numpy.where(random.random(shape) < 0.05, random.choice([0, 1, 40, 64], shape), exponents)
    return (random.integers(0, 2, shape) << 15 | exponents << 7 | random.integers(0, 128, shape)).astype(numpy.uint16)


def integers(shape):
    return random.integers(-128, 128, shape).astype(numpy.int8)


def in_tiles(rows):
    """kernels.h: [n_rows / 16][width / line][16][line], the width rounded up with zeros."""
    n, k = rows.shape
    line = LINE_BYTES // rows.itemsize
    padded = numpy.zeros((n, (k + line - 1) // line * line), rows.dtype)
    padded[:, :k] = rows
    return padded.reshape(n // 16, 16, -1, line).swapaxes(1, 2)


def packed(w):
    """gemm_amx.c: [nb / 16][k / line][16][16] groups of four bytes, k rounded up with zeros."""
    tiles = in_tiles(w)  # [nb / 16][k / line][16][line]
    return tiles.reshape(*tiles.shape[:3], 16, -1).swapaxes(2, 3)


def wide(x):
    return (x.astype(numpy.uint32) << 16).view(numpy.float32).astype(numpy.float64)


def sums(a, w):
    if a.dtype == numpy.int8:
        return (a.astype(numpy.int32) @ w.astype(numpy.int32).T).tobytes()
    return (wide(a) @ wide(w).T).astype(numpy.float32).tobytes()


def product(memory, values, k, nb, rows):
    a, w = values((rows, k)), values((nb, k))
    packed_w = packed(w)
    out = memory.empty(packed_w.nbytes + rows * nb * 4, numpy.uint8)
    arrays = [memory.put(in_tiles(a)), memory.put(w), out, out[packed_w.nbytes :]]
    memory.calls.append(Call(PRODUCT, "<10Q", [TYPES[str(a.dtype)], k, nb, rows, 0, *arrays, packed_w.nbytes], out))
    return None if values is rough else packed_w.tobytes() + sums(a, w)


def in_order(memory, values, k, order):
    """One product for all orders, in which every piece of it has an edge; what is packed is thrown away."""
    nb, rows = 48, 64
    if values not in memory.shared:
        a, w = values((rows, k)), values((nb, k))
        memory.shared[values] = a, w, [memory.put(in_tiles(a)), memory.put(w), memory.empty(packed(w).nbytes, numpy.uint8)]
    a, w, arrays = memory.shared[values]
    out = memory.empty(rows * nb * 4, numpy.uint8)
    memory.calls.append(Call(PRODUCT, "<10Q", [TYPES[str(a.dtype)], k, nb, rows, order, *arrays, out, arrays[2].nbytes], out))
    return None if values is rough else sums(a, w)


def keys(memory, n, head_dim):
    """K and V as kernels.h has them in bf16; past the end stands what must never count."""
    slots = (n + KEY_BLOCK - 1) // KEY_BLOCK * KEY_BLOCK
    k, v = (bf16(random.uniform(-1, 1, (slots, head_dim))) for _ in "kv")
    k[n:] = v[n:] = 0x7FC0
    k = k.reshape(-1, KEY_BLOCK, head_dim // 2, 2).swapaxes(1, 2)
    v = v.reshape(-1, 2, head_dim).swapaxes(1, 2)
    return memory.put(k), memory.put(v)


def attention(memory, head_dim, n_prefix, n_own, n_group, tiled):
    n_rows = min(n_own, 20)  # the last ones
    width = n_group * head_dim
    q = numpy.full(((n_rows * n_group + ATTEND_ROWS - 1) // ATTEND_ROWS * ATTEND_ROWS, head_dim), 0x7FC0, numpy.uint16)
    q[: n_rows * n_group] = bf16(random.uniform(-4, 4, (n_rows * n_group, head_dim)))
    q = memory.put(q)
    prefix, own = keys(memory, n_prefix, head_dim), keys(memory, n_own, head_dim)
    out = memory.empty((32, width), numpy.uint16 if tiled else numpy.float32)
    scratch = memory.empty(ATTEND_ROWS * (3 * head_dim + 2 * ATTEND_RUN), numpy.float32)
    fields = [n_rows, n_group, head_dim, n_own - n_rows, n_prefix, n_own, q, *prefix, *own, out, tiled, tiled, scratch, head_dim**-0.5]
    memory.calls.append(Call(ATTENTION, "<15Qd", fields, out))


CASES = {}  # name: (function, arguments)
for values in (exact, rough, integers):
    for k in (1, 17, 31, 32, 33, 96, 300, 1024):
        for nb in (16, 48, 128):
            for rows in (16, 64):
                CASES[f"product-{values.__name__}-k{k}-nb{nb}-rows{rows}"] = (product, (values, k, nb, rows))
for values, k in ((rough, 1060), (integers, 2120)):  # of 34 tiles
    for order in range(N_ORDERS):
        CASES[f"product-{values.__name__}-order{order}"] = (in_order, (values, k, order))
for d, head_dim in enumerate((32, 64, 96, 128)):
    for p, n_prefix in enumerate((0, 1, 16, 78, 129, 300)):
        for o, n_own in enumerate((1, 7, 33, 150)):
            group, tiled = 1 + (d + p + o) % 4, (p + o) % 2
            CASES[f"attention-{head_dim}-prefix{n_prefix}-own{n_own}-group{group}-{'tiles' if tiled else 'f32'}"] = (
                attention,
                (head_dim, n_prefix, n_own, group, tiled),
            )


# ---- both sides -------------------------------------------------------------------------------------------------------------------


def segments(program):
    """The memory of a static ELF file from IMAGE on, and its entry."""
    elf, image = program.read_bytes(), bytearray()
    entry, headers = struct.unpack_from("<QQ", elf, 24)
    size, n = struct.unpack_from("<HH", elf, 54)
    for i in range(n):
        kind, _, offset, address, _, n_file, n_memory, _ = struct.unpack_from("<IIQQQQQQ", elf, headers + i * size)
        if kind == 1:  # PT_LOAD
            image[address - IMAGE :] = bytes(address - IMAGE - len(image)) + elf[offset : offset + n_file].ljust(n_memory, b"\0")
    return bytes(image), entry


def on_bochs(program, folder, pieces, calls):
    """What each call returned and left in its `out`, or a sentence that says why there is nothing."""
    image, entry = segments(program)
    jump = struct.pack("<BHH", 0xEA, entry & 15, entry >> 4)
    files = {
        "rom": (b"\xf4" * 0xFFF0 + jump).ljust(0x10000, b"\xf4"),  # a processor begins 16 bytes before its end
        "vgarom": bytes(2048),
        "image": image,
        "machine": MACHINE.encode(),
    }
    files |= {f"memory{i}": piece for i, piece in enumerate(pieces)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = [os.environ["QR_BOCHS"], "-q", "-f", "machine"]
    ended = subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S)
    sent = ended.stdout[max(ended.stdout.find(b"CALL"), 0) :]
    results, at = [], 0
    for call in calls:
        if sent[at : at + 4] != b"CALL":
            break
        (failed,) = struct.unpack_from("<Q", sent, at + 4)
        results.append((failed, sent[at + 12 : at + 12 + call.out.nbytes]))
        at += 12 + call.out.nbytes
    fault = ended.stdout.find(b"FAULT", len(ended.stdout) - len(sent) + at)
    if fault >= 0:
        vector, rip, cr2 = struct.unpack_from("<3Q", ended.stdout, fault + 5)
        why = f"{EXCEPTIONS.get(vector, vector)} at {rip:#x} of {program.name}, CR2 {cr2:#x}"
    else:
        why = f"Bochs ended early: {(folder / 'log').read_text()[-4000:] if (folder / 'log').exists() else ended.stderr.decode()}"
    return results + [(why, b"")] + [("an earlier call went wrong", b"")] * (len(calls) - len(results) - 1)


def on_this_processor(library, memory):
    """The same from the emulation; the memory is no longer as it was then."""
    call_it = ctypes.CDLL(library).amx_call
    call_it.restype, call_it.argtypes = ctypes.c_size_t, (ctypes.c_size_t, ctypes.c_void_p)
    results = []
    for call in memory.calls:
        arguments = memory.arguments(call, memory.bytes.ctypes.data)
        results.append((call_it(call.what, arguments.ctypes.data), call.out.tobytes()))
    return results


@pytest.fixture(scope="session")
def results(build, tmp_path_factory):
    """For each case: what came from AMX, from the emulation, and what is known to be right, or None."""
    memory = Memory()
    right = [function(memory, *arguments) for function, arguments in CASES.values()]
    pieces = memory.pieces()
    found = on_bochs(build / "amx_guest", tmp_path_factory.mktemp("amx"), pieces, memory.calls)
    if " avx512_bf16 " in pathlib.Path("/proc/cpuinfo").read_text():  # attention is built for it
        emulated = on_this_processor(build / "libamx_emulated.so", memory)
    else:
        emulated = on_bochs(build / "amx_guest_emulated", tmp_path_factory.mktemp("emulated"), pieces, memory.calls)
    return dict(zip(CASES, zip(found, emulated, right)))


def check(found, expected, what):
    found, expected = (numpy.frombuffer(x, numpy.uint8) for x in (found, expected))
    wrong = numpy.nonzero(found != expected)[0]
    if len(wrong):
        pytest.fail(f"{len(wrong)} of {len(found)} bytes are not {what}, the first is {wrong[0]}")


@pytest.mark.parametrize("name", CASES)
def test_same_bits(results, name):
    (failed, found), (_, emulated), right = results[name]
    assert failed == 0
    assert any(found)
    check(found, emulated, "those of the emulated tiles")
    if right is not None:
        check(found, right, "those of exact sums")
