#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""conan_recipe.py <recipe folder> <work folder> <version>: runs the recipe with a stand-in for the conan package that
has the few functions it uses, the way `conan create` would call them, and looks at the package."""
import fnmatch
import importlib.util
import pathlib
import shutil
import sys
import types

recipe_folder, work, version = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3]


def copy(_, pattern, source, target):
    source, target, copied = pathlib.Path(source), pathlib.Path(target), 0
    for file in source.rglob("*"):
        name = file.relative_to(source).as_posix()
        if file.is_file() and fnmatch.fnmatch(name, pattern):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target / name)
            copied += 1
    assert copied, f"nothing matches {pattern} in {source}"


class Recorder:
    def __init__(self):
        self.calls = {}

    def set_property(self, name, value):
        self.calls[name] = value

    def clear(self):
        self.calls["clear"] = True


class ConanFile:
    def __init__(self):
        self.required, self.info, self.cpp_info = [], Recorder(), Recorder()

    def requires(self, reference):
        self.required.append(reference)


def module(name, **members):
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


module("conan", ConanFile=ConanFile)
module("conan.tools")
module("conan.tools.files", copy=copy, load=lambda _, path: pathlib.Path(path).read_text(encoding="utf-8"))
module("conan.tools.build", can_run=lambda _: True)
module("conan.tools.cmake", CMake=object, cmake_layout=lambda _: None)


def load_recipe(path):
    spec = importlib.util.spec_from_file_location(path.parent.name, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return next(kind for kind in vars(loaded).values()
                if isinstance(kind, type) and issubclass(kind, ConanFile) and kind is not ConanFile)()


recipe = load_recipe(recipe_folder / "conanfile.py")
recipe.recipe_folder = str(recipe_folder)
recipe.export_sources_folder = recipe.source_folder = str(work / "source")
recipe.package_folder = str(work / "package")
recipe.set_version()
assert recipe.version == version, (recipe.version, version)
recipe.export_sources()
recipe.requirements()
recipe.package_id()
recipe.package()
recipe.package_info()
assert recipe.cpp_info.calls["cmake_target_name"] == "pqattn::pqattn"
assert (work / "package/include/pqattn/pqattn.hpp").is_file() and (work / "package/licenses/LICENSE").is_file()
assert {name.split("/")[0] for name in recipe.required} == {"eigen", "xsimd"}
load_recipe(recipe_folder / "test_package" / "conanfile.py")
print(f"recipe of {recipe.name} {recipe.version}: stand-in run complete (conan itself not used)")
