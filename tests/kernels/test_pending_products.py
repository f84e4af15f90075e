"""Machine code that overwrites what a product still reads is found, and other code is not."""

from tests.kernels.pending_products import overwriting

LOOP = """
.L_x_1:
        /*0010*/                   LDSM.16.M88.4 R4, [R2] ;
        /*0020*/                   HMUL2 R8, R4, R3.H0_H0 ;
        /*0030*/                   WARPGROUP.ARRIVE ;
        /*0040*/                   HGMMA.64x32x16.F32 R24, R8, gdesc[UR4], R24, gsb0 ;
{rest}
        /*0090*/               @P0 BRA `(.L_x_1) ;
        /*00a0*/                   FADD R10, R24, R25 ;
        /*00b0*/                   EXIT ;
"""


def code(*rest: str) -> str:
    lines = (f"        /*00{5 + i}0*/                   {line} ;" for i, line in enumerate(rest))
    return LOOP.format(rest="\n".join(lines))


def test_an_ended_product_reads_nothing() -> None:
    assert overwriting(code("WARPGROUP.DEPBAR.LE gsb0, 0x0")) == []


def test_the_next_turn_and_what_follows_overwrite_what_is_still_read() -> None:
    assert overwriting(code("WARPGROUP.DEPBAR.LE gsb0, 0x1")) == [
        "HMUL2 R8, R4, R3.H0_H0",
        "FADD R10, R24, R25",
    ]


def test_a_load_of_several_registers_overwrites_the_last_one() -> None:
    assert overwriting(code("LDSM.16.M88.4 R5, [R2]", "WARPGROUP.DEPBAR.LE gsb0, 0x0")) == [
        "LDSM.16.M88.4 R5, [R2]"
    ]


def test_what_is_stored_is_only_read() -> None:
    assert overwriting(code("@P1 STS [R8], R9", "WARPGROUP.DEPBAR.LE gsb0, 0x0")) == []


def test_an_earlier_group_has_ended_when_a_later_one_has() -> None:
    """The wait leaves one group running: the second, whose registers nobody writes."""
    rest = (
        "HMUL2 R12, R4, R3.H1_H1",
        "HGMMA.64x32x16.F32 R24, R16, gdesc[UR8], R24, gsb0",
        "WARPGROUP.DEPBAR.LE gsb0, 0x1",
    )
    assert overwriting(code(*rest)) == []
