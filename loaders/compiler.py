"""Numba's compiler without what kernels do not need, so that the first batch on a new machine comes soon.

Numba lets a function name its compiler (`pipeline_class`). What each thing here saves: docs/performance.md.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import binding, ir
from numba import typeof, types
from numba.core import untyped_passes as untyped
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder, Flags
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import InlineOverloads, NopythonRewrites

# For closures, `with` blocks, strings, array expressions, loops over mixed tuples: kernels have none.
_UNUSED = (
    untyped.WithLifting,
    untyped.InlineClosureLikes,
    untyped.RewriteSemanticConstants,
    untyped.RewriteDynamicRaises,
    untyped.MakeFunctionToJitFunction,
    untyped.InlineInlinables,
    untyped.FindLiterallyCalls,
    untyped.LiteralUnroll,
    untyped.LiteralPropagationSubPipelinePass,
    InlineOverloads,
    NopythonRewrites,
)


class _QuickFlags(Flags):
    """Options of a function, compared at once: numba does so one by one, for each operator it types."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _QuickFlags) and self._values == other._values

    def __hash__(self) -> int:
        return _HASH


_HASH = hash(Flags())  # which looks at the names of options alone


class _Typing:
    """Numba's typing context for one function, which remembers what calls and operators give.

    Numba tries one overload after the other for each `a[i]`, and types all statements at least twice.
    """

    def __init__(self, context: Any) -> None:
        self._context = context
        self._known: dict[Any, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def resolve_function_type(self, function: Any, args: Any, keywords: Any) -> Any:
        if keywords:
            return self._context.resolve_function_type(function, args, keywords)
        key = function, tuple(args)
        if key not in self._known:
            self._known[key] = self._context.resolve_function_type(function, args, keywords)
        return self._known[key]


# Numba announces every taking of LLVM's lock, 36,000 for a first batch, to listeners that nobody sets up.
binding.ffi.lib._lock._cblist.clear()


class KernelCompiler(CompilerBase):
    """Compiles a function that is called from Python."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.state.flags = _QuickFlags(self.state.flags)
        self.state.typingctx = _Typing(self.state.typingctx)

    def define_pipelines(self) -> list[PassManager]:
        """Return numba's passes but for those that have nothing to do."""
        passes = PassManager("kernel")
        for one, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if one not in _UNUSED:
                passes.add_pass(one, description)
        passes.finalize()
        return [passes]


class EntryCompiler(KernelCompiler):
    """Compiles a function whose machine code is kept by us; see `object_code`."""

    def define_pipelines(self) -> list[PassManager]:
        """Have the object file kept beside the code in memory."""
        name = self.state.func_id.func_qualname
        self.state.library = self.state.targetctx.codegen().create_library(name)
        self.state.library.enable_object_caching()
        return super().define_pipelines()


def object_code(function: Any, arguments: Sequence[Any]) -> tuple[str, bytes]:
    """Compile a function for arguments like these.

    Args:
        function: a dispatcher whose compiler is `EntryCompiler`.
        arguments: arrays, which may be read-only where the function only reads, and whole numbers.

    Returns:
        Name of the function in its object file, and that file.
    """
    kinds = tuple(_writable(typeof(argument)) for argument in arguments)
    function.compile(kinds)
    compiled = function.overloads[kinds]
    return compiled.fndesc.llvm_func_name, bytes(compiled.library._get_compiled_object())


def _writable(kind: Any) -> Any:
    return kind.copy(readonly=False) if isinstance(kind, types.Array) else kind


class PartCompiler(KernelCompiler):
    """Compiles a function that kernels alone call: it is merged into them, and needs no machine code."""

    def define_pipelines(self) -> list[PassManager]:
        """Have the function's code kept in a library of parts."""
        self.state.library = _PartLibrary(self.state.targetctx.codegen(), self.state.func_id.func_qualname)
        self.state.library.enable_object_caching()
        return super().define_pipelines()


class _PartLibrary(JITCodeLibrary):
    def _optimize_functions(self, module: Any) -> None:
        module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        """Leave it to the kernels that the code goes to."""

    def _finalize_final_module(self) -> None:
        """Keep the code for linking, and hand on to be compiled no more than numba asks an address of."""
        part = self._final_module
        for function in part.functions:
            if not function.is_declaration and function.linkage == binding.Linkage.external:
                function.linkage = binding.Linkage.linkonce_odr
        self._shared_module = part
        rest = self._codegen._create_empty_module(self.name)
        for variable in part.global_variables:
            if variable.linkage == binding.Linkage.common:  # where numba keeps a function's environment
                place = ir.GlobalVariable(rest, ir.IntType(8).as_pointer(), variable.name)
                place.linkage, place.initializer = "common", ir.Constant(place.type.pointee, None)
        self._final_module = binding.parse_assembly(str(rest))
        super()._finalize_final_module()
