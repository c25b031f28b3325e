// Communicator over a HostCommunicator: the same operations, with CPU tensors in place of pointers and counts.
#pragma once

#include <memory>

#include "comm/communicator_impl.h"
#include "comm/host_communicator.h"

namespace deepscale {

std::shared_ptr<Communicator::Impl> make_host_tensor_communicator(std::shared_ptr<HostCommunicator> host);

}  // namespace deepscale
