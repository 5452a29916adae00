"""Every module has a test file of its own name, or is in this table, which names the test that covers it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("loaders", "engine", "recipes", "tools")

# One entry per test: a folder, then the modules below that folder that the test covers.
HELD = {
    "loaders/test_contract.py": """loaders/ batch build epochs options backends/cpu backends/work
        transform kernels/memory views/presets""",
    "loaders/test_dali.py": "loaders/ backends/dali views/dali views/dali_operations",
    "loaders/test_ffcv.py": "loaders/ backends/ffcv backends/ffcv_memory backends/ffcv_operations",
    "loaders/backends/test_stream.py": """loaders/ backends/fetching packs/stores/store
        packs/stores/shard_cache""",
    "loaders/test_paired.py": "loaders/order/ balanced weighted",
    "loaders/order/test_permutation.py": "loaders/kernels/ shuffles",
    "loaders/test_raw_packs.py": "loaders/kernels/ encodings",
    "loaders/kernels/jpeg/test_baseline.py": """loaders/kernels/jpeg/ colours decode entropy huffman idct
        markers turbojpeg turbojpeg_calls""",
    "loaders/packs/test_packer.py": """loaders/ packs/build_files packs/finish packs/options packs/workers
        kernels/packing/tar""",
    "loaders/kernels/views/test_resample.py": "loaders/kernels/ simd",
    "loaders/kernels/views/test_parity.py": """loaders/kernels/views/ blur codes pointwise render spatial
        statistics streaming""",
    "loaders/views/test_draw.py": "loaders/ kernels/views/drawing views/geometry",
    "loaders/packs/labels/test_subsample.py": "loaders/common/ notice",
    "loaders/common/test_command_line.py": "loaders/common/ cores",
    "loaders/packs/test_pack_files.py": """loaders/packs/ columns manifest pack listing listing_lines
        labels/tables shards/shard_list shards/parts shards/tar_shard shards/beton_shard""",
    "loaders/packs/test_stock_readers.py": "loaders/packs/shards/ beton_layout",
    "loaders/packs/test_damage.py": "loaders/packs/ shards/job shards/rows",
    "loaders/packs/test_audit.py": "loaders/packs/ convert",
    "loaders/packs/test_append.py": "loaders/packs/ verify",
    "loaders/packs/test_repair.py": "loaders/packs/ images/jpeg_repair quarantine reasons",
    "loaders/packs/test_pixels.py": "loaders/packs/images/ odd_formats png_chunks to_rgb",
    "loaders/packs/test_image.py": """loaders/packs/images/ jpeg_header resize image_kinds
        decoder_messages""",
    "loaders/packs/test_ray_and_remote.py": """loaders/packs/ ray_workers stores/upload stores/remote_pack""",
    "loaders/packs/test_source_kinds.py": """loaders/packs/sources/ beton_file bytes_at folder hugging_face
        image_table item label_file list_rows numbers other_pack path_list spool table_columns tar_file tree
        webdataset zip""",
    "loaders/packs/test_sources.py": "loaders/packs/sources/ naming spec tar_members",
    "corpus/test_layouts.py": """loaders/packs/ sources/layouts sources/folder_classes labels/files
        labels/multi_labels labels/summary""",
    "recipes/test_bought.py": "loaders/packs/labels/ class_names",
    "tools/test_inspect_pack.py": "loaders/packs/ findings images/thumbnail repeats",
    "loaders/common/test_json_text.py": "tools/packing/ inspect pack_page",
    "recipes/test_options.py": "loaders/ pretraining",
    "engine/nets/test_foreign.py": "engine/nets/ adapt weight_files",
    "tools/test_export.py": "engine/nets/ exported",
    "engine/report/test_run_page.py": "engine/report/ blocks classifier_sections tested",
    "tools/test_report.py": "engine/report/ other_pages",
    "recipes/test_pipeline.py": "engine/ labels/decided report/ablation train/stage_config",
    "loaders/backends/test_resident.py": "loaders/backends/ device",
    "loaders/kernels/device/test_views.py": "loaders/kernels/device/ filters launch",
    "tools/test_doctor.py": "tools/bench/ stages",
    "tools/test_sluice.py": "tools/command/ advice",
    "tools/test_few_labels.py": "tools/ frozen",
    "tools/test_gpu_suite.py": "tools/gpu/ cases peers shared suite training",
    "engine/nets/test_classifier.py": "engine/nets/ description",
    "engine/nets/test_starts.py": "engine/nets/ checkpoints",
    "recipes/test_ssl_gan.py": """engine/ nets/gan_networks labels/matching train/draws train/gan_config
        train/gan_recipe""",
    "recipes/test_leaks.py": "engine/ labels/shared_images report/sections",
    "engine/objectives/test_barlow.py": "engine/objectives/ precision",
    "engine/report/test_page.py": "engine/report/ figures theme",
    "engine/nets/test_variational.py": "engine/report/ pictures",
    "engine/train/test_loop.py": """engine/train/ clock lines loop_config options progress recipe run
        run_folder""",
    "recipes/test_supervised.py": "engine/ choices train/classifier_config train/classifier_recipe",
    "recipes/test_probe_start.py": "engine/train/ classifier_start",
    "recipes/test_jigsaw.py": "engine/train/ tile_config",
    "recipes/test_transfer.py": "engine/ train/fine_tuning train/tuning_config",
    "tools/test_bench_harness.py": """tools/ bench_loaders bench/backends bench/contender bench/corpus
        bench/harness bench/measure bench/names bench/records bench/table bench/workload
        peers/torchvision_v2 peers/limits peers/turboloader_native""",
    "tools/test_bench_guarantees.py": "tools/bench/ same_work",
    "tools/test_options.py": "tools/ bench_scale bench_select convert_pack",
    "tools/test_compare_methods.py": "tools/comparison/ selfsup semisup",
    "tools/test_reproduce.py": "tools/reproduction/ measure page plan tables",
    "tools/test_pack_tools.py": "tools/ pack_dataset verify_pack write_digits packing/names packing/warned",
    "tools/test_drawing.py": "tools/packing/ synthetic",
    "tools/test_bench_packing.py": "tools/packing/ writers",
    "tools/test_bench_report.py": "tools/ plot_bench",
    "tools/test_show_views.py": "tools/views/ oracle sheet",
    "tools/test_peers.py": """tools/peers/ dali_native dali_views ffcv_native kornia_batch kornia_views
        litdata_stream spdl_threads
        torchvision_pil torchvision_views webdataset_pil""",
    "test_commands.py": "tools/ profile_kernels",
    "test_python.py": "tools/ check_python",
}  # fmt: skip


def held() -> dict[str, str]:
    """Return the test of each module in the table."""
    found: dict[str, str] = {}
    for test, line in HELD.items():
        folder, *names = line.split()
        for name in names:
            assert found.setdefault(folder + name, test) == test, f"{folder}{name} stands in the table twice"
    return found


def modules() -> list[str]:
    paths = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
    return [str(path.relative_to(ROOT).with_suffix("")) for path in paths if path.stem != "__init__"]


def mirror(module: str) -> str:
    path = Path(module)
    return str(path.with_name(f"test_{path.name}.py"))


def test_every_module_has_a_test_or_a_line() -> None:
    table = held()
    bare = [m for m in modules() if not (ROOT / "tests" / mirror(m)).exists()]
    assert sorted(set(bare) - table.keys()) == [], "write tests/<layer>/<folder>/test_<module>.py, or a line"
    assert sorted(table.keys() - set(bare)) == [], (
        "these are no modules any more, or have a test of their own"
    )


@cache
def reached(module: str) -> frozenset[str]:
    """Return the project's modules that one module names, in imports or as a script in a string."""
    path = ROOT / f"{module}.py"
    path = path if path.exists() else ROOT / module / "__init__.py"
    if not path.exists():
        return frozenset()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) < 80:
            found |= {node.value.removesuffix(".py"), f"tools.{node.value}"}
            if node.value.startswith("tools/") and node.value.endswith(".sh"):
                found |= set(re.findall(r"tools/[\w/]+(?=\.py)", (ROOT / node.value).read_text("utf-8")))
    return frozenset(name.replace(".", "/") for name in found)


@pytest.mark.parametrize("test", sorted(set(held().values())))
def test_the_test_of_a_line_reaches_its_modules(test: str) -> None:
    seen: set[str] = set()
    front = [f"tests/{test.removesuffix('.py')}", "tests/conftest"]
    while front:
        module = front.pop()
        if module not in seen and (module.split("/")[0] in (*LAYERS, "tests")):
            seen.add(module)
            front += reached(module)
    named = {module for module, its in held().items() if its == test}
    if test != "test_commands.py":  # it runs every script that it finds
        assert sorted(named - seen) == []
