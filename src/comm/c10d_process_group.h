// The complete c10d::ProcessGroup (20 s to parse), for process_group.cpp and for the bindings, which take one from
// Python.
#pragma once

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>  // IWYU pragma: export
