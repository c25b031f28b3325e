# Finds LibTorch inside a torch wheel and defines
#   TorchWheel::torch   headers, libtorch, libtorch_cpu, libc10
#   TorchWheel::python  the above plus libtorch_python, Python's headers and torch's own copy of pybind11
#   TorchWheel_VERSION, TorchWheel_MINOR (2.11), TorchWheel_DIR_ROOT (the folder of the torch package)
# torch's own TorchConfig.cmake is not used: with a CUDA wheel it demands a CUDA toolkit, and nothing here needs one.
# Input:
#   DEEPSCALE_PYTHON     an interpreter; default: .venv/bin/python, then python3
#   DEEPSCALE_TORCH_DIR  the folder torch/ of an unpacked wheel (include/, lib/, version.py), for a torch that no interpreter
#                        has installed; default: the torch that DEEPSCALE_PYTHON finds
if(NOT DEEPSCALE_PYTHON)
  if(Python_EXECUTABLE)
    set(DEEPSCALE_PYTHON "${Python_EXECUTABLE}")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/.venv/bin/python")
    set(DEEPSCALE_PYTHON "${PROJECT_SOURCE_DIR}/.venv/bin/python")
  elseif(EXISTS "${PROJECT_SOURCE_DIR}/.venv/Scripts/python.exe")
    set(DEEPSCALE_PYTHON "${PROJECT_SOURCE_DIR}/.venv/Scripts/python.exe")
  else()
    find_program(DEEPSCALE_PYTHON NAMES python3 python)
  endif()
elseif(DEEPSCALE_PYTHON MATCHES "/" AND NOT IS_ABSOLUTE "${DEEPSCALE_PYTHON}")
  # Tests run it from other folders. A normal variable shadows the cache entry; resolving a symbolic link would leave the environment.
  set(DEEPSCALE_PYTHON "${CMAKE_SOURCE_DIR}/${DEEPSCALE_PYTHON}")
endif()
if(DEEPSCALE_TORCH_DIR)
  set(_torch_folder "'${DEEPSCALE_TORCH_DIR}'")
else()
  set(_torch_folder "os.path.dirname(u.find_spec('torch').origin)")
endif()
execute_process(
  COMMAND "${DEEPSCALE_PYTHON}" -c
  "import importlib.util as u, sysconfig, os; print(${_torch_folder}); print(sysconfig.get_path('include')); print(sysconfig.get_config_var('EXT_SUFFIX'))"
  OUTPUT_VARIABLE _torch_facts RESULT_VARIABLE _torch_status OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_VARIABLE _torch_error)
if(NOT _torch_status EQUAL 0)
  message(FATAL_ERROR "no torch for ${DEEPSCALE_PYTHON}; install it (pip install torch==2.11.0) or set -DDEEPSCALE_PYTHON, -DDEEPSCALE_TORCH_DIR or -DDEEPSCALE_WITH_TORCH=OFF\n${_torch_error}")
endif()
string(REGEX REPLACE "\r?\n" ";" _torch_facts "${_torch_facts}")
string(REPLACE "\\" "/" _torch_facts "${_torch_facts}")
list(GET _torch_facts 0 TorchWheel_DIR_ROOT)
list(GET _torch_facts 1 TorchWheel_PYTHON_INCLUDE)
list(GET _torch_facts 2 DEEPSCALE_EXT_SUFFIX)
file(READ "${TorchWheel_DIR_ROOT}/version.py" _torch_version)
string(REGEX MATCH "__version__ = '([0-9]+\\.[0-9]+\\.[0-9]+)" _ "${_torch_version}")
set(TorchWheel_VERSION "${CMAKE_MATCH_1}")
string(REGEX MATCH "^[0-9]+\\.[0-9]+" TorchWheel_MINOR "${TorchWheel_VERSION}")
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(TorchWheel REQUIRED_VARS TorchWheel_DIR_ROOT VERSION_VAR TorchWheel_VERSION)
set(_torch_prefix "${TorchWheel_DIR_ROOT}/lib/lib")
set(_torch_suffix .so)
set(_torch_python_libraries "")
if(WIN32)
  # Import libraries lie beside the DLLs; Python's lies beside its interpreter, not in the virtual environment.
  set(_torch_prefix "${TorchWheel_DIR_ROOT}/lib/")
  set(_torch_suffix .lib)
  execute_process(
    COMMAND "${DEEPSCALE_PYTHON}" -c
    "import sys; print(sys.base_prefix.replace(chr(92), '/') + '/libs/python%d%d.lib' % sys.version_info[:2])"
    OUTPUT_VARIABLE _torch_python_libraries OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT TARGET TorchWheel::torch)
  add_library(TorchWheel::torch INTERFACE IMPORTED)
  target_include_directories(TorchWheel::torch SYSTEM INTERFACE
    "${TorchWheel_DIR_ROOT}/include" "${TorchWheel_DIR_ROOT}/include/torch/csrc/api/include")
  target_compile_definitions(TorchWheel::torch INTERFACE USE_C10D USE_C10D_GLOO USE_DISTRIBUTED)
  target_link_libraries(TorchWheel::torch INTERFACE
    "${_torch_prefix}torch${_torch_suffix}" "${_torch_prefix}torch_cpu${_torch_suffix}" "${_torch_prefix}c10${_torch_suffix}")
  add_library(TorchWheel::python INTERFACE IMPORTED)
  target_include_directories(TorchWheel::python SYSTEM INTERFACE "${TorchWheel_PYTHON_INCLUDE}")
  target_link_libraries(TorchWheel::python INTERFACE TorchWheel::torch "${_torch_prefix}torch_python${_torch_suffix}" ${_torch_python_libraries})
endif()
