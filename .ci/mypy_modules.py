"""A plugin of mypy: an attribute that a torch module finds by name at run time can be anything.

torch declares it as ``Tensor | Module``, so that every call of a child and every buffer would need a cast. Attributes
that a class declares keep their types.
"""

from collections.abc import Callable

from mypy.plugin import AttributeContext, Plugin
from mypy.types import AnyType, Type, TypeOfAny, UnionType, get_proper_type

MODULE = 'torch.nn.modules.module.Module'


class Modules(Plugin):
    """Replaces the return type of ``Module.__getattr__``."""

    def get_attribute_hook(self, fullname: str) -> Callable[[AttributeContext], Type] | None:
        """The hook of an attribute of modules."""
        return found_by_name if fullname.rpartition('.')[0] == MODULE else None


def found_by_name(context: AttributeContext) -> Type:
    """Any for ``Tensor | Module``; other types stay."""
    if isinstance(get_proper_type(context.default_attr_type), UnionType):
        return AnyType(TypeOfAny.special_form)
    return context.default_attr_type


def plugin(version: str) -> type[Plugin]:
    """What mypy asks for."""
    return Modules
