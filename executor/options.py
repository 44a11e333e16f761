"""What several of the executor's commands take on the command line."""

import click

from executor import roles


class RoleList(click.ParamType[frozenset[str]]):
    """`denoise,decode`."""

    name = "ROLE,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> frozenset[str]:
        """Names of roles."""
        try:
            return value if isinstance(value, frozenset) else roles.parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class SizeList(click.ParamType[list[tuple[int, int]]]):
    """`256x256,512x512`."""

    name = "WxH,..."

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[tuple[int, int]]:
        """Sizes in pixels."""
        if isinstance(value, list):
            return value
        try:
            sizes = [tuple(int(side) for side in size.split("x")) for size in str(value).split(",")]
        except ValueError:
            sizes = []
        if not sizes or any(len(size) != 2 or min(size) < 1 for size in sizes):
            self.fail(f"{value!r} is no list of sizes such as 256x256,512x512", param, ctx)
        return [(size[0], size[1]) for size in sizes]


class NumberList(click.ParamType[list[int]]):
    """`1,2,4`: positive numbers, 1 among them; ascending, each once."""

    name = "N,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list[int]:
        """The numbers."""
        if isinstance(value, list):
            return value
        try:
            numbers = sorted({int(number) for number in str(value).split(",")})
        except ValueError:
            numbers = []
        if not numbers or numbers[0] < 1:
            self.fail(f"{value!r} is no list of positive numbers such as 1,2,4", param, ctx)
        if numbers[0] > 1:
            self.fail("1 must be among them: a profile begins with degree 1 and batch 1", param, ctx)
        return numbers
