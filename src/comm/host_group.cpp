#include "comm/host_group.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/host_channel.h"

namespace deepscale {
namespace {

bool is_point_to_point(HostKind kind) {
  return kind == HostKind::kSend || kind == HostKind::kRecv;
}

bool has_slices(HostKind kind) {
  return kind == HostKind::kReduceScatter || kind == HostKind::kAllToAll;
}

}  // namespace

HostOperation::HostOperation(const HostCall& call)
    : input(static_cast<const char*>(call.input)), output(static_cast<char*>(call.output)) {
  descriptor.kind = call.kind;
  descriptor.dtype = call.dtype;
  descriptor.op = call.op;
  descriptor.root = call.root;
  descriptor.count = call.count;
  const size_t length = std::min(call.tag.size(), tag_.size() - 1);
  if (length > 0) std::memcpy(tag_.data(), call.tag.data(), length);
}

namespace {

std::string describe_descriptor(const HostDescriptor& descriptor, std::string_view tag, uint64_t number) {
  std::string text(name_of(descriptor.kind));
  if (!tag.empty()) text += fmt::format(" \"{}\"", tag);
  text += fmt::format(" (#{}", number);
  if (descriptor.kind != HostKind::kBarrier) {
    text += fmt::format(", {} x {}", descriptor.count, name_of(descriptor.dtype));
  }
  if (descriptor.kind == HostKind::kAllReduce || descriptor.kind == HostKind::kReduceScatter) {
    text += fmt::format(", {}", name_of(descriptor.op));
  }
  if (descriptor.kind == HostKind::kBroadcast) text += fmt::format(", root {}", descriptor.root);
  if (descriptor.kind == HostKind::kSend) text += fmt::format(", to {}", descriptor.root);
  if (descriptor.kind == HostKind::kRecv) text += fmt::format(", from {}", descriptor.root);
  return text + ")";
}

}  // namespace

std::string HostOperation::describe() const {
  return describe_descriptor(descriptor, tag(), number);
}

HostGroup::HostGroup(std::shared_ptr<HostContext> context, std::vector<int> members, std::vector<int64_t> block_offsets,
                     int64_t staging_bytes)
    : context_(std::move(context)),
      members_(std::move(members)),
      staging_(StagingShape::of(std::max(staging_bytes, int64_t{256} * static_cast<int64_t>(members_.size())))),
      own_block_offset_([&] {
        const auto self = std::find(members_.begin(), members_.end(), context_->rank());
        return block_offsets[static_cast<size_t>(self - members_.begin())];
      }()) {
  const size_t count = members_.size();
  for (size_t i = 0; i < count; ++i) {
    blocks_.push_back(static_cast<HostBlock*>(context_->memory()->at({members_[i], block_offsets[i]})));
    if (members_[i] == context_->rank()) {
      rank_ = static_cast<int>(i);
    } else {
      others_.push_back(members_[i]);
    }
  }
  seen_done_.resize(count);
  seen_staged_.resize(count);
  seen_consumed_.resize(count);
  peers_.resize(count);
  inputs_.resize(count);
  outputs_.resize(count);
  channels_ = std::make_unique<HostChannels>(*this);
}

HostGroup::~HostGroup() {
  if (!context_->owns_process()) return;  // a forked child: not even the mutex may be touched
  context_->forget(*this);
  HostBlock& own = block(rank_);
  std::vector<int64_t> offsets = channels_->offsets();
  if (const uint64_t staging = own.staging_offset.load(); staging != 0)
    offsets.push_back(static_cast<int64_t>(staging));
  offsets.push_back(own_block_offset_);
  own.left.store(1);
  ring();
  for (int index = 0; index < size(); ++index) block(index).leavers.fetch_add(1);
  // Peers may still look at these: freed when all of them have left too.
  context_->memory()->free_when(std::move(offsets), [watched = &own, everybody = static_cast<uint64_t>(size())] {
    return watched->leavers.load() == everybody;
  });
}

std::shared_ptr<HostOperation> HostGroup::post(const HostCall& call) {
  const std::lock_guard lock(context_->mutex());
  context_->check_failed();
  auto operation = std::make_shared<HostOperation>(call);
  if (is_point_to_point(call.kind)) {
    context_->activate(*this);
    try {
      channels_->post(operation);
    } catch (const std::exception& error) {
      context_->give_up(error);
      throw;
    }
    return operation;
  }
  operation->number = next_number_++;
  count_bytes(*operation);
  if (size() == 1) {
    run_alone(*operation);
    operation->finished = true;
    return operation;
  }
  block(rank_).posted.store(next_number_, std::memory_order_relaxed);
  queue_.push_back(operation);
  context_->activate(*this);
  // Visible to the peers at once, if the ring has room: they may be waiting for it.
  if (queue_.size() == 1 || queue_[queue_.size() - 2]->published) publish(*operation);
  return operation;
}

bool HostGroup::progress() {
  bool moved = false;
  while (!queue_.empty()) {
    HostOperation& head = *queue_.front();
    moved |= advance(head);
    if (!head.finished) break;
    queue_.pop_front();
  }
  // Operations that found the ring full when they were posted.
  for (size_t i = 0; i < queue_.size(); ++i) {
    if (queue_[i]->published) continue;
    if (!publish(*queue_[i])) break;
    moved = true;
  }
  return channels_->progress() || moved;
}

bool HostGroup::idle() const {
  return queue_.empty() && channels_->idle();
}

void HostGroup::abandon() {
  queue_.clear();
  channels_->abandon();
}

bool HostGroup::advance(HostOperation& operation) {
  if (!operation.published && !publish(operation)) return false;
  bool moved = false;
  if (!operation.routed) {
    if (!match(operation)) return false;
    route(operation);
    moved = true;
  }
  switch (operation.path) {
    case HostPath::kInline:
      run_inline(operation);
      break;
    case HostPath::kDirect:
      run_direct(operation);
      break;
    case HostPath::kStaged:
      moved |= run_staged(operation);
      if (operation.consumed < operation.pieces || operation.staged < operation.pieces) return moved;
      break;
  }
  finish(operation);
  return true;
}

bool HostGroup::publish(HostOperation& operation) {
  if (operation.number >= kSlots && !all_done(operation.number - kSlots)) return false;
  HostDescriptor& descriptor = operation.descriptor;
  HostSlot& slot = block(rank_).slots[operation.number % kSlots];
  const int64_t slices = has_slices(descriptor.kind) ? size() : 1;
  const int64_t bytes = slices * descriptor.count * size_of(descriptor.dtype);
  if (descriptor.kind == HostKind::kBroadcast && descriptor.root != rank_) {
    descriptor.source = HostSource::kNone;
  } else if (bytes <= kInlineBytes) {
    descriptor.source = HostSource::kInline;
    if (bytes > 0) std::memcpy(slot.data, operation.input, static_cast<size_t>(bytes));
  } else if (const auto address = context_->memory()->locate(operation.input, bytes)) {
    descriptor.source = HostSource::kShared;
    descriptor.address = *address;
  } else {
    descriptor.source = HostSource::kForeign;
  }
  slot.write(descriptor, operation.tag());
  slot.sequence.store(operation.number + 1);
  operation.published = true;
  ring();
  return true;
}

bool HostGroup::takes_part(const HostOperation& operation, int index) const {
  if (index == rank_) return false;
  return operation.descriptor.kind != HostKind::kBroadcast || index == operation.descriptor.root;
}

bool HostGroup::match(HostOperation& operation) {
  for (; operation.matched < size(); ++operation.matched) {
    const int index = operation.matched;
    if (!takes_part(operation, index)) continue;
    const HostSlot& slot = block(index).slots[operation.number % kSlots];
    if (slot.sequence.load() != operation.number + 1) return false;
    peers_[static_cast<size_t>(index)] = slot.read();
    check_agreement(operation, index);
  }
  peers_[static_cast<size_t>(rank_)] = operation.descriptor;
  return true;
}

void HostGroup::check_agreement(const HostOperation& operation, int index) const {
  const HostDescriptor& peer = peers_[static_cast<size_t>(index)];
  if (peer.agrees_with(operation.descriptor)) return;
  const HostSlot& slot = block(index).slots[operation.number % kSlots];
  ds_throw<CommError>(
      "rank {} is at {}, but rank {} is at {}: all ranks of a group must run the same operations, with the "
      "same counts and types, in the same order",
      context_->rank(), operation.describe(), members_[static_cast<size_t>(index)],
      describe_descriptor(peer, slot.tag.load(), operation.number));
}

void HostGroup::route(HostOperation& operation) {
  bool all_shared = true;
  bool all_inline = true;
  for (int index = 0; index < size(); ++index) {
    const HostSource source = peers_[static_cast<size_t>(index)].source;
    if (index != rank_ && !takes_part(operation, index)) continue;
    if (source == HostSource::kNone) continue;
    all_shared &= source == HostSource::kShared;
    all_inline &= source == HostSource::kInline;
  }
  operation.routed = true;
  operation.path = all_inline ? HostPath::kInline : all_shared ? HostPath::kDirect : HostPath::kStaged;
  const HostKind kind = operation.descriptor.kind;
  if (operation.path == HostPath::kDirect) {
    operation.outputs_with_peers = kind == HostKind::kAllReduce;
    operation.inputs_with_peers = true;
  }
  if (operation.path == HostPath::kStaged) plan_pieces(operation);
}

void HostGroup::finish(HostOperation& operation) {
  operation.finished = true;
  block(rank_).done.store(operation.number + 1);
  ring();
}

bool HostGroup::all_done(uint64_t number) {
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (static_cast<int>(i) == rank_ || seen_done_[i] > number) continue;
    seen_done_[i] = blocks_[i]->done.load();
    if (seen_done_[i] <= number) return false;
  }
  return true;
}

bool HostGroup::reached(const HostOperation& operation, HostUntil until) {
  if (is_point_to_point(operation.descriptor.kind)) return channels_->reached(operation, until);
  if (!operation.finished) return false;
  const bool with_peers =
      operation.outputs_with_peers || (until == HostUntil::kReleased && operation.inputs_with_peers);
  return !with_peers || all_done(operation.number);
}

const HostOperation& HostGroup::blocking(const HostOperation& operation) const {
  if (is_point_to_point(operation.descriptor.kind)) return channels_->blocking(operation);
  return operation.finished || queue_.empty() ? operation : *queue_.front();
}

std::vector<int> HostGroup::late(const HostOperation& operation, HostUntil until) const {
  if (is_point_to_point(operation.descriptor.kind)) return channels_->late(operation, until);
  const HostOperation& head = blocking(operation);
  std::vector<int> late;
  for (int index = 0; index < size(); ++index) {
    if (index == rank_) continue;
    HostBlock& peer = block(index);
    bool is_late = false;
    if (head.finished) {
      is_late = peer.done.load() <= head.number;
    } else if (!head.published) {
      is_late = peer.done.load() + kSlots <= head.number;
    } else if (!head.routed) {
      is_late = takes_part(head, index) && peer.slots[head.number % kSlots].sequence.load() != head.number + 1;
    } else {
      const uint64_t next = head.first_piece + head.staged;
      is_late = (takes_part(head, index) && head.consumed < head.pieces &&
                 peer.staged.load() <= head.first_piece + head.consumed) ||
                (head.staged < head.pieces && peer.consumed.load() + staging_.pieces <= next);
    }
    if (is_late) late.push_back(index);
  }
  return late;
}

std::string HostGroup::position_of(int index) const {
  const int peer = members_[static_cast<size_t>(index)];
  const HostRankHeader& header = context_->header(peer);
  if (const std::string waiting = header.waiting.load(); !waiting.empty()) {
    return fmt::format("rank {} is at {}", peer, waiting);
  }
  const std::string position = header.position.load();
  const std::string where = position.empty() ? "" : fmt::format(", it is in {}", position);
  HostBlock& peer_block = block(index);
  uint64_t newest = 0;
  for (const HostSlot& slot : peer_block.slots) newest = std::max(newest, slot.sequence.load());
  if (newest == 0) return fmt::format("rank {} has started no operation of this group{}", peer, where);
  const HostSlot& slot = peer_block.slots[(newest - 1) % kSlots];
  return fmt::format("the last operation that rank {} has started is {}{}", peer,
                     describe_descriptor(slot.read(), slot.tag.load(), newest - 1), where);
}

void HostGroup::count_bytes(const HostOperation& operation) {
  const HostDescriptor& descriptor = operation.descriptor;
  const int64_t slice = descriptor.count * size_of(descriptor.dtype);
  const int64_t peers = size() - 1;
  int64_t bytes = 0;
  switch (descriptor.kind) {
    case HostKind::kAllReduce:
      bytes = 2 * slice * peers / size();
      break;
    case HostKind::kReduceScatter:
    case HostKind::kAllGather:
    case HostKind::kAllToAll:
      bytes = slice * peers;
      break;
    case HostKind::kBroadcast:
      bytes = descriptor.root == rank_ ? 0 : slice;
      break;
    default:
      break;
  }
  bytes_moved_.fetch_add(bytes, std::memory_order_relaxed);
}

}  // namespace deepscale
