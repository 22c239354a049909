"""Bits a weight of SmolLM2-135M in every format: of its linear layers, padding included, and of the whole file."""

from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import report
from benchmarks.ternary_files import OTHERS, SOURCE, TERNARY, write_originals, write_students


def main() -> None:
    num_weights = SOURCE.architecture.num_parameters
    with TemporaryDirectory() as directory:
        written = write_students({**TERNARY, **OTHERS}, Path(directory))
        originals = {name: file.stat().st_size for name, file in write_originals(Path(directory)).items()}
    linear = {name: 8 * model.bytes_per_linear_weight for name, model in written.items()}
    whole = {name: 8 * model.num_bytes / num_weights for name, model in written.items()}
    gguf = [name for name in TERNARY if not name.endswith("F16")]
    smallest = min(gguf, key=whole.__getitem__)
    rounded = {name: {"linear": round(linear[name], 3), "whole": round(whole[name], 3)} for name in written}
    peers = {name: round(8 * size / num_weights, 3) for name, size in originals.items()}
    detail = {
        "smallest": smallest,
        "bits_a_weight": rounded,
        "megabytes": {name: round(m.num_bytes / 1e6, 1) for name, m in written.items()},
    }
    report(
        "export_size",
        whole[smallest],
        "bits a weight of the smallest GGUF file, embedding and padding included",
        goal=peers["original Q4_0"],
        peers=peers,
        detail=detail,
    )


if __name__ == "__main__":
    main()
