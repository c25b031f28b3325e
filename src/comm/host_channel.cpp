#include "comm/host_channel.h"

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "comm/host_group.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

int64_t bytes_of(const HostOperation& operation) {
  return operation.descriptor.count * size_of(operation.descriptor.dtype);
}

bool is_send(const HostOperation& operation) {
  return operation.descriptor.kind == HostKind::kSend;
}

}  // namespace

void HostChannels::post(const std::shared_ptr<HostOperation>& operation) {
  const auto size = static_cast<size_t>(group_.size());
  sends_.resize(size);
  receives_.resize(size);
  const int peer = operation->descriptor.root;
  Line& line = (is_send(*operation) ? sends_ : receives_)[static_cast<size_t>(peer)];
  operation->number = line.next_number++;
  if (is_send(*operation)) group_.bytes_moved().fetch_add(bytes_of(*operation), std::memory_order_relaxed);
  line.queue.push_back(operation);
  ++queued_;
  work_off(line, peer, is_send(*operation));  // a short message is under way at once
}

bool HostChannels::progress() {
  if (queued_ == 0) return false;
  bool moved = false;
  for (int peer = 0; peer < static_cast<int>(sends_.size()); ++peer) {
    moved |= work_off(sends_[static_cast<size_t>(peer)], peer, /*sending=*/true);
    moved |= work_off(receives_[static_cast<size_t>(peer)], peer, /*sending=*/false);
  }
  return moved;
}

bool HostChannels::work_off(Line& line, int peer, bool sending) {
  bool moved = false;
  while (!line.queue.empty()) {
    HostOperation& head = *line.queue.front();
    moved |= sending ? advance_send(line, head, peer) : advance_receive(line, head, peer);
    if (!head.finished) break;
    line.queue.pop_front();
    --queued_;
  }
  return moved;
}

void HostChannels::abandon() {
  for (Line& line : sends_) line.queue.clear();
  for (Line& line : receives_) line.queue.clear();
  queued_ = 0;
}

HostChannel& HostChannels::open_channel(int peer) {
  Line& line = sends_[static_cast<size_t>(peer)];
  if (line.channel == nullptr) {
    HostMemory& memory = *group_.context()->memory();
    const int64_t offset = memory.allocate_offset(sizeof(HostChannel));
    line.channel = static_cast<HostChannel*>(memory.at({memory.rank(), offset}));
    group_.block(group_.rank()).channel_offset(peer).store(static_cast<uint64_t>(offset));
  }
  return *line.channel;
}

int64_t HostChannels::piece_bytes() const {
  return group_.staging().piece_bytes;
}

char* HostChannels::piece(const HostChannel& channel, int owner, uint64_t ring_piece) const {
  const auto base = static_cast<int64_t>(channel.staging_offset.load(std::memory_order_relaxed));
  const int64_t offset = base + static_cast<int64_t>(ring_piece % group_.staging().pieces) * piece_bytes();
  return static_cast<char*>(group_.context()->memory()->at({group_.members()[static_cast<size_t>(owner)], offset}));
}

void HostChannels::wake(int peer) const {
  group_.context()->ring(std::span(&group_.members()[static_cast<size_t>(peer)], 1));
}

bool HostChannels::advance_send(Line& line, HostOperation& operation, int peer) {
  HostChannel& channel = open_channel(peer);
  bool moved = false;
  if (!operation.published) {
    if (operation.number >= kChannelSlots && channel.taken.load() + kChannelSlots <= operation.number) return false;
    publish(line, operation);
    wake(peer);
    moved = true;
  }
  const int64_t bytes = bytes_of(operation);
  while (operation.staged < operation.pieces) {
    const uint64_t ring_piece = operation.first_piece + operation.staged;
    if (channel.consumed.load() + group_.staging().pieces <= ring_piece) return moved;
    const int64_t begin = static_cast<int64_t>(operation.staged) * operation.piece_bytes;
    std::memcpy(piece(channel, group_.rank(), ring_piece), operation.input + begin,
                static_cast<size_t>(std::min(operation.piece_bytes, bytes - begin)));
    ++operation.staged;
    channel.staged.store(ring_piece + 1);
    wake(peer);
    moved = true;
  }
  operation.finished = true;
  return moved;
}

void HostChannels::publish(Line& line, HostOperation& operation) {
  HostMemory& memory = *group_.context()->memory();
  HostChannel& channel = *line.channel;
  HostDescriptor& descriptor = operation.descriptor;
  HostSlot& slot = channel.slots[operation.number % kChannelSlots];
  const int64_t bytes = bytes_of(operation);
  if (bytes <= kInlineBytes) {
    descriptor.source = HostSource::kInline;
    if (bytes > 0) std::memcpy(slot.data, operation.input, static_cast<size_t>(bytes));
  } else if (const auto address = memory.locate(operation.input, bytes)) {
    descriptor.source = HostSource::kShared;
    descriptor.address = *address;
    operation.inputs_with_peers = true;
  } else {
    descriptor.source = HostSource::kForeign;
    operation.piece_bytes = piece_bytes();
    operation.pieces = static_cast<uint64_t>((bytes + operation.piece_bytes - 1) / operation.piece_bytes);
    operation.first_piece = line.next_piece;
    line.next_piece += operation.pieces;
    if (channel.staging_offset.load(std::memory_order_relaxed) == 0) {
      channel.staging_offset.store(static_cast<uint64_t>(memory.allocate_offset(group_.staging().bytes())));
    }
  }
  slot.write(descriptor, operation.tag());
  slot.sequence.store(operation.number + 1);
  operation.published = true;
}

bool HostChannels::advance_receive(Line& line, HostOperation& operation, int peer) {
  HostMemory& memory = *group_.context()->memory();
  if (line.channel == nullptr) {
    const uint64_t offset = group_.block(peer).channel_offset(group_.rank()).load();
    if (offset == 0) return false;
    const int owner = group_.members()[static_cast<size_t>(peer)];
    line.channel = static_cast<HostChannel*>(memory.at({owner, static_cast<int64_t>(offset)}));
  }
  HostChannel& channel = *line.channel;
  const HostSlot& slot = channel.slots[operation.number % kChannelSlots];
  bool moved = false;
  if (!operation.routed) {
    if (slot.sequence.load() != operation.number + 1) return false;
    accept(line, operation, peer);
    moved = true;
  }
  const int64_t bytes = bytes_of(operation);
  while (operation.consumed < operation.pieces) {
    const uint64_t ring_piece = operation.first_piece + operation.consumed;
    if (channel.staged.load() <= ring_piece) return moved;
    const int64_t begin = static_cast<int64_t>(operation.consumed) * operation.piece_bytes;
    kernels::copy_bytes(piece(channel, peer, ring_piece), operation.output + begin,
                        std::min(operation.piece_bytes, bytes - begin));
    ++operation.consumed;
    channel.consumed.store(ring_piece + 1);
    wake(peer);
    moved = true;
  }
  operation.finished = true;
  channel.taken.store(operation.number + 1);
  wake(peer);
  return true;
}

/// Checks the message at the head against what the receiver expects, and takes it unless it comes in pieces.
void HostChannels::accept(Line& line, HostOperation& operation, int peer) {
  const HostSlot& slot = line.channel->slots[operation.number % kChannelSlots];
  const HostDescriptor message = slot.read();
  const HostDescriptor& expected = operation.descriptor;
  DS_CHECK_AS(
      CommError, message.count == expected.count && message.dtype == expected.dtype,
      "rank {} is at {}, but what rank {} sends it (send \"{}\") is {} x {}: both sides must give the same count "
      "and type",
      group_.context()->rank(), operation.describe(), group_.members()[static_cast<size_t>(peer)], slot.tag.load(),
      message.count, name_of(message.dtype));
  operation.routed = true;
  const int64_t bytes = bytes_of(operation);
  if (message.source == HostSource::kForeign) {
    operation.piece_bytes = piece_bytes();
    operation.pieces = static_cast<uint64_t>((bytes + operation.piece_bytes - 1) / operation.piece_bytes);
    operation.first_piece = line.next_piece;
    line.next_piece += operation.pieces;
  } else if (bytes > 0) {
    const void* const source =
        message.source == HostSource::kInline ? slot.data : group_.context()->memory()->at(message.address);
    kernels::copy_bytes(source, operation.output, bytes);
  }
}

const HostChannels::Line& HostChannels::line_of(const HostOperation& operation) const {
  return (is_send(operation) ? sends_ : receives_)[static_cast<size_t>(operation.descriptor.root)];
}

bool HostChannels::reached(const HostOperation& operation, HostUntil until) const {
  if (!operation.finished) return false;
  if (until == HostUntil::kOutputs || !operation.inputs_with_peers) return true;
  return line_of(operation).channel->taken.load() > operation.number;
}

const HostOperation& HostChannels::blocking(const HostOperation& operation) const {
  const Line& line = line_of(operation);
  return operation.finished || line.queue.empty() ? operation : *line.queue.front();
}

std::vector<int> HostChannels::late(const HostOperation& operation, HostUntil until) const {
  const Line& line = line_of(operation);
  const HostOperation& head = blocking(operation);
  const int peer = operation.descriptor.root;
  bool is_late = false;
  if (is_send(operation)) {
    const HostChannel& channel = *line.channel;
    const uint64_t ring_piece = head.first_piece + head.staged;
    is_late = head.finished    ? !reached(head, until)
              : head.published ? channel.consumed.load() + group_.staging().pieces <= ring_piece
                               : channel.taken.load() + kChannelSlots <= head.number;
  } else if (!head.finished) {
    const uint64_t offset = group_.block(peer).channel_offset(group_.rank()).load();
    is_late = offset == 0;
    if (line.channel != nullptr) {
      const HostSlot& slot = line.channel->slots[head.number % kChannelSlots];
      is_late = head.routed ? line.channel->staged.load() <= head.first_piece + head.consumed
                            : slot.sequence.load() != head.number + 1;
    }
  }
  return is_late ? std::vector<int>{peer} : std::vector<int>{};
}

std::vector<int64_t> HostChannels::offsets() const {
  std::vector<int64_t> offsets;
  const HostMemory& memory = *group_.context()->memory();
  for (const Line& line : sends_) {
    if (line.channel == nullptr) continue;
    const auto address = memory.locate(line.channel, sizeof(HostChannel));
    offsets.push_back(address->offset);
    if (const uint64_t staging = line.channel->staging_offset.load(); staging != 0) {
      offsets.push_back(static_cast<int64_t>(staging));
    }
  }
  return offsets;
}

}  // namespace deepscale
