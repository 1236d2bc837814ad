# SPDX-License-Identifier: MIT
"""Conan 2 recipe for the checkout it lies in: conan create packaging/conan"""
import os
import re

from conan import ConanFile
from conan.tools.files import copy, load


class PqattnConan(ConanFile):
    name = "pqattn"
    license = "MIT"
    description = "Attention on product-quantized KV caches, header-only"
    topics = ("attention", "kv-cache", "product-quantization", "header-only")
    package_type = "header-library"
    settings = "os", "arch", "compiler", "build_type"
    no_copy_source = True

    @property
    def _checkout(self):
        return os.path.normpath(os.path.join(self.recipe_folder, "..", ".."))

    def set_version(self):
        header = load(self, os.path.join(self._checkout, "include", "pqattn", "version.hpp"))
        self.version = ".".join(re.search(rf"PQATTN_VERSION_{part} +(\d+)", header).group(1)
                                for part in ("MAJOR", "MINOR", "PATCH"))

    def export_sources(self):
        copy(self, "include/*", self._checkout, self.export_sources_folder)
        copy(self, "LICENSE", self._checkout, self.export_sources_folder)

    def requirements(self):
        self.requires("eigen/3.4.0")
        self.requires("xsimd/13.0.0")

    def package_id(self):
        self.info.clear()

    def package(self):
        copy(self, "include/*", self.source_folder, self.package_folder)
        copy(self, "LICENSE", self.source_folder, os.path.join(self.package_folder, "licenses"))

    def package_info(self):
        self.cpp_info.bindirs = []
        self.cpp_info.libdirs = []
        self.cpp_info.set_property("cmake_file_name", "pqattn")
        self.cpp_info.set_property("cmake_target_name", "pqattn::pqattn")
        self.cpp_info.set_property("pkg_config_name", "pqattn")
