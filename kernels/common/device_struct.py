"""Python objects that live inside kernels.

A kernel's `if` and `for` on runtime values become regions of the compiled code, and every object that is used inside
must say which runtime values it carries. `DeviceStruct` does so for all attributes: device values are carried,
everything else is a compile-time constant.
"""

import copy

from cutlass import cutlass_dsl as dsl


def _values(attribute) -> list:
    if isinstance(attribute, dict):
        attribute = list(attribute.values())
    if isinstance(attribute, (list, tuple)):
        return [value for item in attribute for value in _values(item)]
    if hasattr(attribute, "__extract_mlir_values__") and not isinstance(attribute, type):
        return list(dsl.extract_mlir_values(attribute))
    return []


def _rebuild(attribute, values: list):
    if isinstance(attribute, dict):
        return {name: _rebuild(item, values) for name, item in attribute.items()}
    if isinstance(attribute, (list, tuple)):
        return type(attribute)(_rebuild(item, values) for item in attribute)
    count = len(_values(attribute))
    if not count:
        return attribute
    taken = values[:count]
    del values[:count]
    return dsl.new_from_mlir_values(attribute, taken)


class DeviceStruct:
    """Base of kernel objects.

    Attributes may be device values, tensors, other DeviceStructs, lists and dictionaries of these, or constants.
    """

    def __extract_mlir_values__(self) -> list:
        return [value for attribute in vars(self).values() for value in _values(attribute)]

    def __new_from_mlir_values__(self, values: list):
        clone, remaining = copy.copy(self), list(values)
        for name, attribute in vars(self).items():
            object.__setattr__(clone, name, _rebuild(attribute, remaining))
        return clone
