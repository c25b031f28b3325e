# Environment variables of DeepSpeed's build instructions that have no meaning here: accepted, and said so in one line.
# There are no operators to choose from: all of them are part of libdeepscale, for every CPU, picked at run time.
set(operators
  AIO CCL_COMM SHM_COMM CPU_ADAM CPU_ADAGRAD CPU_LION FUSED_ADAM FUSED_LAMB FUSED_LION EVOFORMER_ATTN QUANTIZER FP_QUANTIZER
  RANDOM_LTD TRANSFORMER TRANSFORMER_INFERENCE STOCHASTIC_TRANSFORMER SPATIAL_INFERENCE INFERENCE_CORE_OPS CUTLASS_OPS
  RAGGED_DEVICE_OPS RAGGED_OPS GDS DEEP_COMPILE PIN_MEMORY UTILS SPARSE_ATTN)
set(operator_variables "")
set(cuda_variables "")
foreach(variable DS_BUILD_OPS ${operators})
  if(NOT variable STREQUAL "DS_BUILD_OPS")
    string(PREPEND variable DS_BUILD_)
  endif()
  if(DEFINED ENV{${variable}})
    list(APPEND operator_variables "${variable}")
  endif()
endforeach()
foreach(variable DS_SKIP_CUDA_CHECK DS_IGNORE_CUDA_DETECTION DS_NVCC_THREADS DS_DEBUG_CUDA_BUILD DS_ACCELERATOR
                 TORCH_CUDA_ARCH_LIST CUTLASS_PATH)
  if(DEFINED ENV{${variable}})
    list(APPEND cuda_variables "${variable}")
  endif()
endforeach()
if(operator_variables)
  list(JOIN operator_variables ", " text)
  message(STATUS "operators are part of the package, none is left out or compiled later; no effect: ${text}")
endif()
if(cuda_variables)
  list(JOIN cuda_variables ", " text)
  message(STATUS "the build compiles no CUDA code; no effect: ${text}")
endif()
