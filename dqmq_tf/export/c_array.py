"""`write_c_array`: a file as a C++ array with a header, for firmware that runs TFLite Micro."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dqmq_tf import flatbuffer, runtimes
from dqmq_tf.errors import ConversionError
from dqmq_tf.export.atomic_write import write_together
from dqmq_tf.export.file_paths import checked_path
from dqmq_tf.flatbuffer import ModelT, TFLiteFile
from dqmq_tf.flatbuffer.lookup_tables import DECODE
from dqmq_tf.runtimes import tflite_micro

_ALIGNMENT = 16
_BYTES_PER_LINE = 16
_MARGIN = 1.1
_PAGE = 1024
# Method names of TFLite Micro's resolver that do not follow from the name of the operator.
_WORDS = {
    "BATCH_MATMUL": "BatchMatMul",
    "CUMSUM": "CumSum",
    "PADV2": "PadV2",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
}
_CUSTOM = {DECODE: "AddDecode", b"ethos-u": "AddEthosU"}
_C_TYPES = {
    "INT8": "std::int8_t",
    "INT16": "std::int16_t",
    "FLOAT32": "float",
    "INT32": "std::int32_t",
}


def write_c_array(
    contents: bytes | TFLiteFile,
    path: str | os.PathLike[str],
    *,
    arena_bytes: int | None = None,
) -> None:
    """Writes a file as a C++ array, aligned to 16 bytes, with a header that declares how to run it.

    The header has the name and length of the array, the type, shape, scale and zero point of each
    input and output, the normalization of pixels and the labels where the file has them, the size of
    the tensor arena, and a function that registers the operators.

    Args:
        contents: The contents of a `.tflite` file, or a `TFLiteFile`.
        path: The path of the source file. It ends in `.cc`. The header is written beside it and ends
            in `.h`. The namespace is the name of the file, turned into a C++ name.
        arena_bytes: The bytes of the tensor arena that the network needs. None to measure it with the
            `tflite-micro` package.

    Raises:
        ImportError: If the arena has to be measured and `tflite-micro` is not installed.
        ConversionError: If the file needs an operator that TFLite Micro does not have, or if several
            of its subgraphs have a signature.
        ValueError: If `path` does not end in `.cc`, or if its name has a quotation mark.
        OSError: If a file cannot be written, or its folder does not exist. In this case, no file has
            changed.

    Example:

    >>> write_c_array(pathlib.Path("model.tflite").read_bytes(), "model.cc")
    """
    path = checked_path(path, ".cc")
    check_name(path)
    file = TFLiteFile.of(contents)
    if arena_bytes is None:
        arena_bytes = tflite_micro.arena_bytes(file)
    source, header = render(file, path.stem, arena_bytes)
    write_together({path: source, path.with_suffix(".h"): header})


def render(file: TFLiteFile, name: str, arena_bytes: int) -> tuple[str, str]:
    """Returns the source and the header of `write_c_array`.

    Args:
        file: The file to embed.
        name: The name of source and header, without a suffix.
        arena_bytes: The bytes of the tensor arena that the network needs.

    Returns:
        `(source, header)`, two strings.
    """
    check_signatures(file.model)
    space = c_name(name)
    return _source(file.contents, name, space), _header(file, space, arena_bytes)


def check_name(path: pathlib.Path) -> None:
    """Raises `ValueError` if C++ cannot include a header that has the name of a file."""
    if re.search('["\n\r]', path.name):
        raise ValueError(
            f"path={str(path)!r}: C++ code includes the header by this name, but a quotation mark or a "
            "line break cannot stand between the quotation marks of #include. Use another name."
        )


def check_signatures(model: ModelT) -> None:
    """Checks that only the first subgraph has a signature. TFLite Micro crashes on others.

    Args:
        model: The file.

    Raises:
        ConversionError: If another subgraph has a signature.
    """
    others = {d.subgraphIndex for d in model.signatureDefs or ()} - {0}
    if others:
        raise ConversionError(
            f"The file has {len(model.signatureDefs)} signatures. TFLite Micro runs only the first "
            "subgraph, and crashes on the others. Write one file per profile, or use "
            "routing='graph'."
        )


def resolver_calls(model: ModelT) -> list[str]:
    """Returns the methods of the resolver that register a file's operators, sorted by name.

    Args:
        model: The file.

    Returns:
        A list such as `["AddConv2D", "AddReshape"]`.

    Raises:
        ConversionError: If TFLite Micro lacks an operator.
    """
    calls, lacks = set(), runtimes.get(tflite_micro.PACKAGE).lacks
    for code in model.operatorCodes:
        name = flatbuffer.builtin_name(code)
        if code.customCode in _CUSTOM:
            calls.add(_CUSTOM[code.customCode])
        elif name != "CUSTOM" and name not in lacks:
            calls.add(f"Add{_WORDS.get(name) or _camel_case(name)}")
        else:
            raise ConversionError(
                f"Operator {name} is not among those of TFLite Micro. Replace the layer that "
                "needs it, or choose a target with LiteRT."
            )
    return sorted(calls)


def _camel_case(name: str) -> str:
    return "".join(w if w[0].isdigit() else w.capitalize() for w in name.split("_"))


def c_name(name: str) -> str:
    """Returns the name of a file, turned into a C++ name."""
    result = re.sub(r"\W", "_", name.lower(), flags=re.ASCII)
    if not result or result[0].isdigit() or result in _RESERVED:
        result = f"model_{result}"
    return result


# The keywords and alternative tokens of C++20, and its own namespace. A file may have such a name.
_RESERVED = frozenset(
    """alignas alignof and and_eq asm auto bitand bitor bool break case catch char char16_t char32_t
    char8_t class co_await co_return co_yield compl concept const const_cast consteval constexpr
    constinit continue decltype default delete do double dynamic_cast else enum explicit export
    extern false float for friend goto if inline int long mutable namespace new noexcept not not_eq
    nullptr operator or or_eq private protected public register reinterpret_cast requires return
    short signed sizeof static static_assert static_cast std struct switch template this
    thread_local throw true try typedef typeid typename union unsigned using virtual void volatile
    wchar_t while xor xor_eq""".split()
)


def _source(contents: bytes, name: str, space: str) -> str:
    data = np.frombuffer(contents, np.uint8)
    lines = (
        "    " + " ".join(f"0x{byte:02x}," for byte in data[start : start + _BYTES_PER_LINE])
        for start in range(0, len(data), _BYTES_PER_LINE)
    )
    body = "\n".join(lines)
    return f"""// Made by dqmq_tf; see the header.
#include "{name}.h"

namespace {space} {{

alignas({_ALIGNMENT}) extern const unsigned char kModel[kModelBytes] = {{
{body}
}};

}}  // namespace {space}
"""


def _header(file: TFLiteFile, space: str, arena_bytes: int) -> str:
    model = file.model
    graph, guard = model.subgraphs[0], f"DQMQ_TF_{space.upper()}_H_"
    facts = file.metadata or {}
    made = f"dqmq_tf {facts.get('version', 'unknown')}, target {facts.get('target', 'unknown')}"
    calls, names = resolver_calls(model), _signature_names(model)
    ends = "\n".join(
        _end(graph.tensors[index], names.get(index), f"{kind}{number}")
        for kind, indices in (("Input", graph.inputs), ("Output", graph.outputs))
        for number, index in enumerate(indices)
    )
    pixels, labels = (
        _pixels(facts, [names.get(index, "") for index in graph.inputs]),
        _labels(facts),
    )
    arena = -(-int(arena_bytes * _MARGIN) // _PAGE) * _PAGE
    adds = "\n".join(f"  status |= resolver.{call}();" for call in calls)
    return f"""// Made by {made}, profile {facts.get("profile", 0)}.
#ifndef {guard}
#define {guard}

#include <cstddef>
#include <cstdint>

namespace {space} {{

// The .tflite file, aligned to {_ALIGNMENT} bytes.
constexpr std::size_t kModelBytes = {len(file.contents)};
extern const unsigned char kModel[kModelBytes];

// The smallest tensor arena in which the reference kernels of the tflite-micro wheel ran the network
// on a 64-bit machine, found by trying in steps of 16 bytes. On 32 bits TFLite Micro's structures
// are smaller; optimized kernels (CMSIS-NN, Xtensa) may want scratch memory in addition: there,
// MicroInterpreter::arena_used_bytes() tells.
constexpr std::size_t kArenaMeasuredBytes = {arena_bytes};
// The same with a tenth in addition, in whole KiB: what to start with.
constexpr std::size_t kArenaBytes = {arena};

{ends}
{pixels}
{labels}
// A tflite::MicroMutableOpResolver<kOperators> needs these; returns whether all were added.
constexpr unsigned int kOperators = {len(calls)};
template <typename Resolver>
bool AddOperators(Resolver& resolver) {{
  int status = 0;
{adds}
  return status == 0;
}}

}}  // namespace {space}

#endif  // {guard}
"""


def _signature_names(model: ModelT) -> dict[int, str]:
    entries = [e for d in model.signatureDefs or () for e in (*d.inputs, *d.outputs)]
    return {entry.tensorIndex: flatbuffer.text(entry.name) for entry in entries}


def _end(tensor: Any, name: str | None, label: str) -> str:
    """Returns the constants of an input or output as C++ code."""
    kind, name = flatbuffer.type_name(tensor), name or flatbuffer.text(tensor.name)
    if kind not in _C_TYPES:
        raise ConversionError(
            f"{label} {name!r} is {kind}. A C array can have int8, int16, float32 or int32 inputs and "
            "outputs."
        )
    shape = [int(n) for n in tensor.shape]
    lines = [
        f"// {label}: {name}",
        f"using {label}Type = {_C_TYPES[kind]};",
        f"constexpr int k{label}Shape[] = {{{', '.join(map(str, shape))}}};",
        f"constexpr std::size_t k{label}Size = {int(np.prod(shape))};",
    ]
    if kind in ("INT8", "INT16"):
        scale = np.float32(tensor.quantization.scale[0])
        lines += [
            f"// real = k{label}Scale * (value - k{label}ZeroPoint)",
            # Nine digits identify a float32 exactly.
            f"constexpr float k{label}Scale = {scale:.8e}f;",
            f"constexpr int k{label}ZeroPoint = {int(tensor.quantization.zeroPoint[0])};",
        ]
    return "\n".join(lines) + "\n"


def _pixels(facts: Mapping[str, Any], input_names: Sequence[str]) -> str:
    """Returns the normalization of each input as C++ code."""
    lines, rows = [], []
    for number, name in enumerate(input_names):
        entry = facts.get("inputs", {}).get(name)
        if entry is None:
            rows.append("{0, nullptr, nullptr}")
            continue
        how = [f"{key} {entry[key]}" for key in ("color", "resize") if key in entry]
        lines.append(f"// Input{number} is an image: {', '.join(how) or 'pixels from 0 to 255'}.")
        for field in ("Mean", "Std"):
            values = ", ".join(f"{np.float32(value):.8e}f" for value in entry[field.lower()])
            lines.append(f"constexpr float kInput{number}{field}[] = {{{values}}};")
        rows.append(f"{{{len(entry['mean'])}, kInput{number}Mean, kInput{number}Std}}")
    lines += [
        "// How each input takes a pixel from 0 to 255 of a channel: real = (pixel - mean) / std.",
        "// No channels: the file does not say.",
        "struct Normalization {",
        "  std::size_t channels;",
        "  const float* mean;",
        "  const float* std;",
        "};",
        f"constexpr Normalization kNormalization[] = {{{', '.join(rows)}}};",
    ]
    return "\n".join(lines) + "\n"


def _labels(facts: Mapping[str, Any]) -> str:
    """Returns the names of the classes as C++ code."""
    labels = facts.get("labels", [])
    rows = "\n".join(f"    {_c_string(label)}," for label in labels) or "    nullptr,"
    return (
        "// The names of the classes in UTF-8, in the order of Output0.\n"
        f"constexpr std::size_t kLabelCount = {len(labels)};\n"
        f"constexpr const char* kLabels[] = {{\n{rows}\n}};\n"
    )


def _c_string(text: str) -> str:
    """Returns a text as a string literal of C++, in ASCII."""
    # An octal escape has three digits at most, so that a digit after it is not part of it.
    return (
        '"'
        + "".join(
            chr(byte) if 32 <= byte < 127 and chr(byte) not in '"\\?' else f"\\{byte:03o}"
            for byte in text.encode()
        )
        + '"'
    )
