# Where the libraries come from whose headers alone are needed: nlohmann_json::nlohmann_json, CLI11::CLI11,
# deepscale_fmt (fmt and spdlog, both header-only), deepscale_highway and deepscale_xxhash; and GoogleTest.
# - Native builds take the installed packages.
# - Cross builds take the same headers, through a folder of links that holds nothing else of /usr/include, and compile
#   GoogleTest from its sources.
# - DEEPSCALE_FETCH_DEPENDENCIES=ON (the windows-msvc preset): downloaded, in the versions that Debian 12 has.
option(DEEPSCALE_FETCH_DEPENDENCIES "Download header-only libraries and GoogleTest instead of using installed ones" OFF)
set(DEEPSCALE_HEADERS_FROM /usr/include CACHE PATH "cross builds: the folder with nlohmann, CLI, fmt, spdlog, hwy and xxhash.h")
set(DEEPSCALE_GTEST_SOURCE /usr/src/googletest CACHE PATH "cross builds: GoogleTest's sources")

function(deepscale_header_target name folder)
  if(NOT TARGET ${name})
    add_library(${name} INTERFACE IMPORTED GLOBAL)
    target_include_directories(${name} SYSTEM INTERFACE "${folder}")
  endif()
endfunction()

function(deepscale_fetch_dependencies)
  include(FetchContent)
  foreach(entry
      "json|https://github.com/nlohmann/json/archive/refs/tags/v3.11.2.tar.gz|include"
      "cli11|https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.1.2.tar.gz|include"
      "fmt|https://github.com/fmtlib/fmt/archive/refs/tags/9.1.0.tar.gz|include"
      "spdlog|https://github.com/gabime/spdlog/archive/refs/tags/v1.10.0.tar.gz|include"
      "highway|https://github.com/google/highway/archive/refs/tags/1.0.3.tar.gz|."
      "xxhash|https://github.com/Cyan4973/xxHash/archive/refs/tags/v0.8.1.tar.gz|.")
    string(REPLACE "|" ";" entry "${entry}")
    list(GET entry 0 name)
    list(GET entry 1 url)
    list(GET entry 2 folder)
    # No CMakeLists.txt at this path: the sources are unpacked and not built.
    FetchContent_Declare(deepscale_${name} URL "${url}" SOURCE_SUBDIR headers_only DOWNLOAD_EXTRACT_TIMESTAMP OFF)
    FetchContent_MakeAvailable(deepscale_${name})
    set(${name}_headers "${deepscale_${name}_SOURCE_DIR}/${folder}")
  endforeach()
  deepscale_header_target(nlohmann_json::nlohmann_json "${json_headers}")
  deepscale_header_target(CLI11::CLI11 "${cli11_headers}")
  deepscale_header_target(deepscale_fmt "${fmt_headers}")
  target_include_directories(deepscale_fmt SYSTEM INTERFACE "${spdlog_headers}")
  deepscale_header_target(deepscale_highway "${highway_headers}")
  deepscale_header_target(deepscale_xxhash "${xxhash_headers}")
  if(DEEPSCALE_BUILD_TESTS)
    set(gtest_force_shared_crt ON CACHE BOOL "" FORCE)
    FetchContent_Declare(googletest URL https://github.com/google/googletest/archive/refs/tags/release-1.12.1.tar.gz)
    set(INSTALL_GTEST OFF CACHE BOOL "" FORCE)
    FetchContent_MakeAvailable(googletest)
  endif()
endfunction()

function(deepscale_link_headers)
  set(links "${PROJECT_BINARY_DIR}/dependencies/include")
  file(MAKE_DIRECTORY "${links}")
  foreach(folder nlohmann CLI fmt spdlog hwy xxhash.h)
    if(NOT EXISTS "${DEEPSCALE_HEADERS_FROM}/${folder}")
      message(FATAL_ERROR "${DEEPSCALE_HEADERS_FROM}/${folder} is missing; install nlohmann-json3-dev, libcli11-dev, "
        "libfmt-dev, libspdlog-dev, libhwy-dev and libxxhash-dev, or set DEEPSCALE_HEADERS_FROM")
    endif()
    file(CREATE_LINK "${DEEPSCALE_HEADERS_FROM}/${folder}" "${links}/${folder}" COPY_ON_ERROR SYMBOLIC)
  endforeach()
  foreach(name nlohmann_json::nlohmann_json CLI11::CLI11 deepscale_fmt deepscale_highway deepscale_xxhash)
    deepscale_header_target(${name} "${links}")
  endforeach()
  if(DEEPSCALE_BUILD_TESTS)
    if(NOT EXISTS "${DEEPSCALE_GTEST_SOURCE}/CMakeLists.txt")
      message(FATAL_ERROR "${DEEPSCALE_GTEST_SOURCE} is missing; install the package googletest")
    endif()
    set(INSTALL_GTEST OFF CACHE BOOL "" FORCE)
    add_subdirectory("${DEEPSCALE_GTEST_SOURCE}" "${PROJECT_BINARY_DIR}/googletest" EXCLUDE_FROM_ALL)
    if(NOT TARGET GTest::gtest)
      add_library(GTest::gtest ALIAS gtest)
      add_library(GTest::gtest_main ALIAS gtest_main)
    endif()
  endif()
endfunction()

set(CMAKE_FIND_PACKAGE_TARGETS_GLOBAL ON)  # every folder, and libdeepscale, may link what is found
if(DEEPSCALE_FETCH_DEPENDENCIES)
  deepscale_fetch_dependencies()
elseif(CMAKE_CROSSCOMPILING)
  deepscale_link_headers()
else()
  find_package(nlohmann_json REQUIRED)
  find_package(CLI11 REQUIRED)
  find_path(DEEPSCALE_HIGHWAY_HEADERS hwy/highway.h REQUIRED)
  find_path(DEEPSCALE_FMT_HEADERS fmt/core.h REQUIRED)
  find_path(DEEPSCALE_XXHASH_HEADERS xxhash.h REQUIRED)
  find_path(DEEPSCALE_SPDLOG_HEADERS spdlog/spdlog.h REQUIRED)
  deepscale_header_target(deepscale_highway "${DEEPSCALE_HIGHWAY_HEADERS}")
  deepscale_header_target(deepscale_xxhash "${DEEPSCALE_XXHASH_HEADERS}")
  deepscale_header_target(deepscale_fmt "${DEEPSCALE_FMT_HEADERS}")
  target_include_directories(deepscale_fmt SYSTEM INTERFACE "${DEEPSCALE_SPDLOG_HEADERS}")
  if(DEEPSCALE_BUILD_TESTS)
    find_package(GTest REQUIRED)
  endif()
endif()
target_compile_definitions(deepscale_fmt INTERFACE FMT_HEADER_ONLY SPDLOG_HEADER_ONLY SPDLOG_FMT_EXTERNAL)
target_compile_definitions(deepscale_xxhash INTERFACE XXH_INLINE_ALL)
