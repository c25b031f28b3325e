// The public Communicator (deepscale/communicator.h) and how element types are called on either side of it.
#pragma once

#include "base/dtype.h"
#include "base/reduce_op.h"
#include "deepscale/communicator.h"

namespace deepscale {

DType to_dtype(at::ScalarType type);  ///< Throws UnsupportedError for types without a DType.
at::ScalarType to_scalar_type(DType dtype);

}  // namespace deepscale
