#include "comm/host_communicator.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <functional>

#include "base/error.h"
#include "base/hash.h"
#include "comm/host_context.h"
#include "comm/host_group.h"

namespace deepscale {

HostPending::HostPending(std::shared_ptr<HostGroup> group, std::shared_ptr<HostOperation> operation)
    : group_(std::move(group)), operation_(std::move(operation)) {}

HostPending::HostPending(HostPending&&) noexcept = default;

HostPending& HostPending::operator=(HostPending&& other) noexcept {
  if (this != &other) {
    const HostPending finished = std::move(*this);
    group_ = std::move(other.group_);
    operation_ = std::move(other.operation_);
  }
  return *this;
}

HostPending::~HostPending() {
  if (operation_ == nullptr || !group_->context()->owns_process()) return;
  try {
    wait_released();
  } catch (...) {
    // Whoever waits next on this communicator gets the cause; nobody touches the buffers any more.
  }
}

void HostPending::wait() {
  if (operation_ != nullptr) group_->context()->wait(*group_, *operation_, HostUntil::kOutputs);
}

void HostPending::wait_released() {
  if (operation_ == nullptr) return;
  const auto group = std::move(group_);
  const auto operation = std::move(operation_);
  group->context()->wait(*group, *operation, HostUntil::kReleased);
}

bool HostPending::test() {
  return operation_ == nullptr || group_->context()->poll(*group_, *operation_, HostUntil::kOutputs);
}

HostCommunicator::HostCommunicator(std::shared_ptr<HostContext> context, std::shared_ptr<HostGroup> group)
    : context_(std::move(context)), group_(std::move(group)) {}

HostCommunicator::~HostCommunicator() = default;  // the group leaves when its last pending operation has gone too

int HostCommunicator::rank() const {
  return group_->rank();
}
int HostCommunicator::size() const {
  return group_->size();
}
std::chrono::milliseconds HostCommunicator::timeout() const {
  return context_->options().timeout;
}
const std::shared_ptr<HostMemory>& HostCommunicator::memory() const {
  return context_->memory();
}

bool HostCommunicator::is_shared(const void* pointer, int64_t bytes) const {
  return memory()->locate(pointer, bytes).has_value();
}

int64_t HostCommunicator::offset_of(const void* pointer) const {
  const auto address = memory()->locate(pointer, 0);
  DS_CHECK_AS(CommError, address.has_value() && address->rank == context_->rank(),
              "the buffer is not in the shared memory of rank {}: allocate it from the communicator", context_->rank());
  return address->offset;
}

void* HostCommunicator::peer_address(int rank, int64_t offset) const {
  DS_CHECK_AS(CommError, rank >= 0 && rank < size(), "rank must be 0..{}, found {}", size() - 1, rank);
  return memory()->at({group_->members()[static_cast<size_t>(rank)], offset});
}

namespace {

HostPending start(const std::shared_ptr<HostGroup>& group, const HostCall& call) {
  DS_CHECK_AS(CommError, call.count >= 0, "{} \"{}\": the count must not be negative, found {}", name_of(call.kind),
              call.tag, call.count);
  return {group, group->post(call)};
}

void check_rank(const HostCommunicator& communicator, int rank, std::string_view what, std::string_view tag) {
  DS_CHECK_AS(CommError, rank >= 0 && rank < communicator.size(), "{} \"{}\": rank must be 0..{}, found {}", what, tag,
              communicator.size() - 1, rank);
}

}  // namespace

HostPending HostCommunicator::all_reduce(void* data, int64_t count, DType dtype, ReduceOp op, std::string_view tag) {
  return start(group_, {HostKind::kAllReduce, dtype, op, 0, count, data, data, tag});
}

HostPending HostCommunicator::reduce_scatter(const void* input, void* output, int64_t count, DType dtype, ReduceOp op,
                                             std::string_view tag) {
  return start(group_, {HostKind::kReduceScatter, dtype, op, 0, count, input, output, tag});
}

HostPending HostCommunicator::all_gather(const void* input, void* output, int64_t count, DType dtype,
                                         std::string_view tag) {
  return start(group_, {HostKind::kAllGather, dtype, ReduceOp::kSum, 0, count, input, output, tag});
}

HostPending HostCommunicator::broadcast(void* data, int64_t count, DType dtype, int root, std::string_view tag) {
  check_rank(*this, root, "broadcast", tag);
  return start(group_, {HostKind::kBroadcast, dtype, ReduceOp::kSum, root, count, data, data, tag});
}

HostPending HostCommunicator::all_to_all(const void* input, void* output, int64_t count, DType dtype,
                                         std::string_view tag) {
  return start(group_, {HostKind::kAllToAll, dtype, ReduceOp::kSum, 0, count, input, output, tag});
}

HostPending HostCommunicator::send(const void* data, int64_t count, DType dtype, int peer, std::string_view tag) {
  check_rank(*this, peer, "send", tag);
  DS_CHECK_AS(CommError, peer != rank(), "send \"{}\": rank {} cannot send to itself", tag, peer);
  return start(group_, {HostKind::kSend, dtype, ReduceOp::kSum, peer, count, data, nullptr, tag});
}

HostPending HostCommunicator::recv(void* data, int64_t count, DType dtype, int peer, std::string_view tag) {
  check_rank(*this, peer, "recv", tag);
  DS_CHECK_AS(CommError, peer != rank(), "recv \"{}\": rank {} cannot receive from itself", tag, peer);
  return start(group_, {HostKind::kRecv, dtype, ReduceOp::kSum, peer, count, nullptr, data, tag});
}

HostPending HostCommunicator::barrier(std::string_view tag) {
  return start(group_, {HostKind::kBarrier, DType::kUInt8, ReduceOp::kSum, 0, 0, nullptr, nullptr, tag});
}

void HostCommunicator::set_position(std::string_view text) {
  context_->header(context_->rank()).position.store(text);
}

int64_t HostCommunicator::bytes_moved() const {
  return group_->bytes_moved().load(std::memory_order_relaxed);
}

void HostCommunicator::add_bytes_moved(int64_t bytes) {
  group_->bytes_moved().fetch_add(bytes, std::memory_order_relaxed);
}

std::shared_ptr<void> HostCommunicator::allocate_common(int64_t bytes) {
  // Rank 0 of the group owns the region and a counter of the ranks that have dropped it.
  struct Offer {
    int64_t counter_offset = -1;
    int64_t offset = -1;
  } offer;
  std::string error;
  if (rank() == 0) {
    try {
      offer.offset = memory()->allocate_offset(std::max(bytes, HostAllocator::kLarge));
      offer.counter_offset = memory()->allocate_offset(sizeof(SharedCounter));
    } catch (const IoError& failure) {
      error = failure.what();
    }
  }
  broadcast(&offer, sizeof(offer), DType::kUInt8, 0, "allocate_common").wait();
  if (!error.empty()) throw IoError(error);
  DS_CHECK_AS(IoError, offer.counter_offset >= 0,
              "rank {} could not allocate a common region of {} bytes; its own error says why", group_->members()[0],
              bytes);
  auto* const dropped = static_cast<SharedCounter*>(peer_address(0, offer.counter_offset));
  const auto everybody = static_cast<uint64_t>(size());
  const bool owner = rank() == 0;
  return {peer_address(0, offer.offset),
          [context = context_, memory = memory(), dropped, everybody, owner, offer](void*) {
            if (!context->owns_process()) return;
            dropped->fetch_add(1);
            if (!owner) return;
            memory->free_when({offer.offset, offer.counter_offset},
                              [dropped, everybody] { return dropped->load() == everybody; });
          }};
}

std::shared_ptr<HostCommunicator> HostCommunicator::subgroup(std::span<const int> ranks) {
  DS_CHECK_AS(CommError,
              !ranks.empty() && std::adjacent_find(ranks.begin(), ranks.end(), std::greater_equal<>()) == ranks.end(),
              "subgroup: the ranks must be ascending and at least one");
  DS_CHECK_AS(CommError, ranks.front() >= 0 && ranks.back() < size(), "subgroup: ranks must be 0..{}, found {}..{}",
              size() - 1, ranks.front(), ranks.back());
  DS_CHECK_AS(CommError, std::find(ranks.begin(), ranks.end(), rank()) != ranks.end(),
              "subgroup: every rank passes the group that it belongs to, and rank {} is not in the one it passed",
              rank());
  // Everybody tells where its block is and which ranks it expects, as a fingerprint.
  struct Entry {
    int64_t block_offset;
    uint64_t fingerprint;
  };
  Entry own{memory()->allocate_offset(HostBlock::bytes_for(static_cast<int>(ranks.size()))), 0};
  own.fingerprint = fnv1a(fmt::format("{}", fmt::join(ranks, ",")));
  std::vector<Entry> entries(static_cast<size_t>(size()));
  all_gather(&own, entries.data(), sizeof(Entry), DType::kUInt8, "subgroup").wait();
  std::vector<int> members;
  std::vector<int64_t> offsets;
  for (const int member : ranks) {
    const Entry& entry = entries[static_cast<size_t>(member)];
    DS_CHECK_AS(CommError, entry.fingerprint == own.fingerprint,
                "subgroup: ranks {} and {} have passed different groups to the same call", rank(), member);
    members.push_back(group_->members()[static_cast<size_t>(member)]);
    offsets.push_back(entry.block_offset);
  }
  auto group = std::make_shared<HostGroup>(context_, std::move(members), std::move(offsets), group_->staging().bytes());
  return std::make_shared<HostCommunicator>(context_, std::move(group));
}

}  // namespace deepscale
