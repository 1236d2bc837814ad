# SPDX-License-Identifier: MIT
# An overlay port for the checkout it lies in: vcpkg install pqattn --overlay-ports=<checkout>/packaging/vcpkg
cmake_path(SET SOURCE_PATH NORMALIZE "${CMAKE_CURRENT_LIST_DIR}/../../..")
set(VCPKG_BUILD_TYPE release)  # header-only

vcpkg_cmake_configure(
  SOURCE_PATH "${SOURCE_PATH}"
  OPTIONS
    -DPQATTN_BUILD_TESTS=OFF
    -DPQATTN_BUILD_BENCH=OFF
    -DPQATTN_BUILD_EXAMPLES=OFF
    -DPQATTN_BUILD_PROGRAMS=OFF
    -DPQATTN_BUILD_C_API=OFF
    -DPQATTN_BUILD_DISPATCH=OFF
    -DPQATTN_INSTALL=ON)
vcpkg_cmake_install()
vcpkg_cmake_config_fixup(CONFIG_PATH share/cmake/pqattn)
vcpkg_install_copyright(FILE_LIST "${SOURCE_PATH}/LICENSE")
