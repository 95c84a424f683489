"""The head's Triton kernels compiled for GPUs that this machine lacks: registers, spills and width of memory accesses.

The `triton` wheel brings NVIDIA's assembler and disassembler, so the machine code itself is read.
"""

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton has no wheel for this system")
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from trainer.kernels import triton_rows  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    "_statistics_kernel": ("targets", "logprobs", "entropy", "logsumexp"),
    "_gradient_kernel": ("targets", "entropy", "logsumexp", "logprob_gradient", "entropy_gradient"),
}
INSTRUCTION_BYTES = 16
ARCHITECTURES = [pytest.param(80, marks=pytest.mark.slow), 90, pytest.param(100, marks=pytest.mark.slow)]


@dataclass(frozen=True)
class Compiled:
    registers: int
    spilled_bytes: int
    accesses: Counter[str]
    """Loads and stores of global memory, by the name of the machine instruction."""
    loop_instructions: int
    """Machine instructions of the loop over a row's blocks, those that a thread runs for one block."""


def loop_length(code: str) -> int:
    """Return the number of instructions of the longest loop in what the disassembler prints."""
    jumps = re.findall(r"/\*([0-9a-f]{4,})\*/[^;]*?\bBRA(?:\.\w+)*(?: !?\w+,)? 0x([0-9a-f]+)", code)
    back = [(int(place, 16), int(target, 16)) for place, target in jumps if int(target, 16) < int(place, 16)]
    return max((place - target) // INSTRUCTION_BYTES + 1 for place, target in back)


def compiled(
    name: str, architecture: int, aligned: tuple[str, ...], folder: Path, cap: float | None = None
) -> Compiled:
    """A kernel on bfloat16 logits, as it is compiled where the integers `aligned` are multiples of 16."""
    kernel = getattr(triton_rows, name)
    pointers = ("logits", *POINTERS[name])
    types = {"logits": "*bf16"} | dict.fromkeys(POINTERS[name], "*fp32") | {"targets": "*i64"}
    types |= dict.fromkeys(("row_stride", "width", "vocab_size"), "i32") | {"inverse_temperature": "fp32"}
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {each: types.get(each, "constexpr") for each in names},
        constexprs={(names.index("BLOCK"),): triton_rows.BLOCK, (names.index("CAP"),): cap},
        attrs={(names.index(each),): [["tt.divisibility", 16]] for each in (*pointers, *aligned)},
    )
    result = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options={"num_warps": 4})
    binary = folder / f"{name}.cubin"
    binary.write_bytes(result.asm["cubin"])
    used, code = (
        subprocess.run([TOOLS / "cuobjdump", flag, binary], capture_output=True, text=True, check=True).stdout
        for flag in ("--dump-resource-usage", "-sass")
    )
    resources = {key: int(number) for key, number in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used)}
    accesses = Counter(re.findall(r"\b((?:LDG|STG|LDL|STL)[.\w]*)", code))
    return Compiled(resources["REG"], resources["STACK"] + resources["LOCAL"], accesses, loop_length(code))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("name, registers", [("_statistics_kernel", 96), ("_gradient_kernel", 56)])
def test_every_access_of_padded_rows_is_wide_and_nothing_spills(name, registers, cap, architecture, tmp_path):
    """For any vocabulary: `vocab_size` itself is no multiple of anything that the compiler knows."""
    found = compiled(name, architecture, ("row_stride", "width"), tmp_path, cap)
    assert found.spilled_bytes == 0 and not {"LDL", "STL"} & {each.split(".")[0] for each in found.accesses}
    assert found.registers <= registers
    per_thread = triton_rows.BLOCK // 128 * 2 // 16  # bfloat16 of a block, 128 threads, 16 bytes an access
    assert found.accesses["LDG.E.128"] == per_thread
    if name == "_gradient_kernel":
        assert found.accesses["STG.E.128"] == per_thread and not found.accesses["STG.E.U16"]
    assert found.accesses["LDG.E.U16"] <= 1, "the target's own logit is read alone"


def test_rows_of_odd_length_are_why_rows_are_padded(tmp_path):
    found = compiled("_statistics_kernel", 90, (), tmp_path)
    assert found.accesses["LDG.E.U16"] == triton_rows.BLOCK // 128 + 1 and not found.accesses["LDG.E.128"]


def test_the_longest_loop_is_counted_from_its_start_to_its_jump():
    code = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;       /* 0x1 */
                                                                /* 0x2 */
        /*0010*/              @!P0 BRA 0x0060 ;                 /* 0x00 */
        /*0020*/                   FADD R1, R1, R2 ;            /* 0x01 */
        /*0030*/                   FADD R1, R1, R3 ;            /* 0x01 */
        /*0040*/                   BRA.U !UP0, 0x20 ;           /* 0x01 */
        /*0050*/                   EXIT ;                       /* 0x01 */
        /*0060*/                   BRA 0x60;                    /* 0x01 */
    """
    assert loop_length(code) == 3  # at 0x20, 0x30 and 0x40: neither the jump ahead nor the one to itself is a loop


@pytest.mark.parametrize("vocabulary, width", [(1, 16), (16, 16), (17, 32), (49_152, 49_152), (151_669, 151_680)])
def test_a_padded_row_is_a_multiple_of_16(vocabulary, width):
    assert triton_rows.row_width(vocabulary) == width
