// The data movement of HostGroup: what each rank computes and copies, inline, direct and staged.
#include <algorithm>
#include <cstring>

#include "comm/host_group.h"
#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

int64_t slice_bytes(const HostOperation& operation) {
  return operation.descriptor.count * size_of(operation.descriptor.dtype);
}

/// Where the two differ; in-place forms give the same address.
void copy(const char* source, char* destination, int64_t bytes) {
  if (bytes > 0 && source != destination) kernels::copy_bytes(source, destination, bytes);
}

}  // namespace

void HostGroup::run_alone(const HostOperation& operation) const {
  // A group of one: the sum, average or extreme of one value is the value.
  if (operation.input != operation.output) copy(operation.input, operation.output, slice_bytes(operation));
}

/// Everything but a direct all_reduce, when the whole of each peer's input can be read at sources[peer].
void HostGroup::run_read(const HostOperation& operation, std::span<const char* const> sources) const {
  const HostDescriptor& descriptor = operation.descriptor;
  const int64_t bytes = slice_bytes(operation);
  const auto reduce = [&](int64_t offset) {
    std::vector<const void*> inputs(members_.size());
    for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = sources[i] + offset;
    void* const output = operation.output;
    kernels::reduce_buffers(inputs, std::span(&output, 1), descriptor.count, descriptor.dtype, descriptor.op);
  };
  if (bytes == 0) return;
  switch (descriptor.kind) {
    case HostKind::kAllReduce:
      reduce(0);
      break;
    case HostKind::kReduceScatter:
      reduce(rank_ * bytes);
      break;
    case HostKind::kAllGather:
      for (int step = 0; step < size(); ++step) {
        const int peer = (rank_ + step) % size();  // not all at the same peer at once
        copy(sources[static_cast<size_t>(peer)], operation.output + peer * bytes, bytes);
      }
      break;
    case HostKind::kAllToAll:
      for (int step = 0; step < size(); ++step) {
        const int peer = (rank_ + step) % size();
        copy(sources[static_cast<size_t>(peer)] + rank_ * bytes, operation.output + peer * bytes, bytes);
      }
      break;
    case HostKind::kBroadcast:
      if (rank_ != descriptor.root) copy(sources[static_cast<size_t>(descriptor.root)], operation.output, bytes);
      break;
    default:
      break;
  }
}

void HostGroup::run_inline(const HostOperation& operation) {
  std::vector<const char*> sources(members_.size());
  for (int index = 0; index < size(); ++index) {
    sources[static_cast<size_t>(index)] =
        index == rank_ ? operation.input : block(index).slots[operation.number % kSlots].data;
  }
  run_read(operation, sources);
}

void HostGroup::run_direct(const HostOperation& operation) {
  if (operation.descriptor.kind == HostKind::kAllReduce) {
    push_all_reduce(operation);
    return;
  }
  std::vector<const char*> sources(members_.size());
  for (int index = 0; index < size(); ++index) {
    const HostDescriptor& peer = peers_[static_cast<size_t>(index)];
    if (index == rank_) {
      sources[static_cast<size_t>(index)] = operation.input;
    } else if (peer.source == HostSource::kShared) {
      sources[static_cast<size_t>(index)] = static_cast<const char*>(context_->memory()->at(peer.address));
    }
  }
  run_read(operation, sources);
}

void HostGroup::push_all_reduce(const HostOperation& operation) {
  const HostDescriptor& descriptor = operation.descriptor;
  const int64_t element = size_of(descriptor.dtype);
  const int64_t unit = 64 / element;
  const int64_t per_rank = (descriptor.count / size() + unit) / unit * unit;
  const int64_t begin = std::min(rank_ * per_rank, descriptor.count);
  const int64_t numel = std::min(per_rank, descriptor.count - begin);
  if (numel <= 0) return;
  for (int index = 0; index < size(); ++index) {
    const auto i = static_cast<size_t>(index);
    char* const data =
        index == rank_ ? operation.output : static_cast<char*>(context_->memory()->at(peers_[i].address));
    inputs_[i] = data + begin * element;
    outputs_[i] = data + begin * element;
  }
  kernels::reduce_buffers(inputs_, outputs_, numel, descriptor.dtype, descriptor.op);
}

void HostGroup::plan_pieces(HostOperation& operation) {
  const HostKind kind = operation.descriptor.kind;
  const bool slices = kind == HostKind::kReduceScatter || kind == HostKind::kAllToAll;
  operation.piece_bytes =
      slices ? std::max<int64_t>(64, staging_.piece_bytes / size() / 64 * 64) : staging_.piece_bytes;
  const int64_t bytes = slice_bytes(operation);
  operation.pieces = static_cast<uint64_t>((bytes + operation.piece_bytes - 1) / operation.piece_bytes);
  operation.first_piece = next_piece_;
  next_piece_ += operation.pieces;
  if (kind == HostKind::kBroadcast && rank_ != operation.descriptor.root) {
    operation.staged = operation.pieces;  // nothing of ours to write
    block(rank_).staged.store(next_piece_);
  } else {
    ensure_staging();
  }
  if (kind == HostKind::kBroadcast && rank_ == operation.descriptor.root) {
    operation.consumed = operation.pieces;
    block(rank_).consumed.store(next_piece_);
    ring();
  }
}

void HostGroup::ensure_staging() {
  HostBlock& own = block(rank_);
  if (own.staging_offset.load(std::memory_order_relaxed) != 0) return;
  own.staging_offset.store(static_cast<uint64_t>(context_->memory()->allocate_offset(staging_.bytes())));
}

bool HostGroup::run_staged(HostOperation& operation) {
  bool moved = false;
  for (;;) {
    if (can_consume(operation)) {
      consume_piece(operation, operation.consumed);
      ++operation.consumed;
      block(rank_).consumed.store(operation.first_piece + operation.consumed);
    } else if (can_write(operation)) {
      write_piece(operation, operation.staged);
      ++operation.staged;
      block(rank_).staged.store(operation.first_piece + operation.staged);
    } else {
      return moved;
    }
    ring();
    moved = true;
  }
}

bool HostGroup::can_write(const HostOperation& operation) {
  if (operation.staged == operation.pieces) return false;
  const uint64_t piece = operation.first_piece + operation.staged;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (static_cast<int>(i) == rank_ || seen_consumed_[i] + staging_.pieces > piece) continue;
    seen_consumed_[i] = blocks_[i]->consumed.load();
    if (seen_consumed_[i] + staging_.pieces <= piece) return false;
  }
  return true;
}

bool HostGroup::can_consume(const HostOperation& operation) {
  // Own pieces first: an in-place all_reduce overwrites what it has not staged yet.
  if (operation.consumed >= operation.staged) return false;
  const uint64_t piece = operation.first_piece + operation.consumed;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!takes_part(operation, static_cast<int>(i)) || seen_staged_[i] > piece) continue;
    seen_staged_[i] = blocks_[i]->staged.load();
    if (seen_staged_[i] <= piece) return false;
  }
  return true;
}

char* HostGroup::staging_piece(int index, uint64_t ring_piece) const {
  const auto base = static_cast<int64_t>(block(index).staging_offset.load(std::memory_order_relaxed));
  const int64_t offset = base + static_cast<int64_t>(ring_piece % staging_.pieces) * staging_.piece_bytes;
  return static_cast<char*>(context_->memory()->at({members_[static_cast<size_t>(index)], offset}));
}

void HostGroup::write_piece(const HostOperation& operation, uint64_t piece) {
  const int64_t total = slice_bytes(operation);
  const int64_t begin = static_cast<int64_t>(piece) * operation.piece_bytes;
  const auto bytes = static_cast<size_t>(std::min(operation.piece_bytes, total - begin));
  char* const target = staging_piece(rank_, operation.first_piece + piece);
  const HostKind kind = operation.descriptor.kind;
  if (kind != HostKind::kReduceScatter && kind != HostKind::kAllToAll) {
    std::memcpy(target, operation.input + begin, bytes);
    return;
  }
  for (int peer = 0; peer < size(); ++peer) {
    if (peer == rank_) continue;
    std::memcpy(target + peer * operation.piece_bytes, operation.input + peer * total + begin, bytes);
  }
}

void HostGroup::consume_piece(const HostOperation& operation, uint64_t piece) {
  const HostDescriptor& descriptor = operation.descriptor;
  const HostKind kind = descriptor.kind;
  const int64_t total = slice_bytes(operation);
  const int64_t begin = static_cast<int64_t>(piece) * operation.piece_bytes;
  const int64_t bytes = std::min(operation.piece_bytes, total - begin);
  const uint64_t ring_piece = operation.first_piece + piece;
  const bool slices = kind == HostKind::kReduceScatter || kind == HostKind::kAllToAll;
  const auto source = [&](int index) -> const char* {
    if (index == rank_) return operation.input + (slices ? rank_ * total : 0) + begin;
    return staging_piece(index, ring_piece) + (slices ? rank_ * operation.piece_bytes : 0);
  };
  if (kind == HostKind::kAllReduce || kind == HostKind::kReduceScatter) {
    for (int index = 0; index < size(); ++index) inputs_[static_cast<size_t>(index)] = source(index);
    void* const output = operation.output + begin;
    kernels::reduce_buffers(inputs_, std::span(&output, 1), bytes / size_of(descriptor.dtype), descriptor.dtype,
                            descriptor.op);
    return;
  }
  if (kind == HostKind::kBroadcast) {
    copy(source(descriptor.root), operation.output + begin, bytes);
    return;
  }
  for (int step = 0; step < size(); ++step) {
    const int peer = (rank_ + step) % size();
    copy(source(peer), operation.output + peer * total + begin, bytes);
  }
}

}  // namespace deepscale
