// Communicator over any c10d process group, with a host communicator beside it when all of its ranks are on one
// machine: CPU tensors then travel through shared memory, all others through the group.
//
// What the group's backend lacks is made up for here: Gloo's missing average is a sum and one multiplication, dtypes
// that Gloo does not know travel as bytes (moves) or as int32 (reductions of int16). An operation that fails says where
// this rank stood and, through the group's store, where the others failed.
#pragma once

#include <chrono>
#include <memory>
#include <optional>

#include "comm/communicator.h"
#include "comm/process_group.h"

namespace deepscale {

enum class HostUse {
  kNever,  ///< everything through the process group
  kAuto,   ///< shared memory for CPU tensors when all ranks are on one machine
};

/// Collective over the group with kAuto (ranks find out whether they share a machine); same arguments on all ranks.
/// A group of one rank becomes Communicator::self(). Throws CommError.
Communicator make_torch_communicator(const ProcessGroup::Handle& group,
                                     std::optional<std::chrono::milliseconds> timeout = std::nullopt,
                                     HostUse host_use = HostUse::kAuto);
/// The same over a group that is wrapped already.
Communicator make_torch_communicator(std::shared_ptr<ProcessGroup> group, HostUse host_use);

}  // namespace deepscale
