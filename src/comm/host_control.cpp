#include "comm/host_control.h"

namespace deepscale {

std::string_view name_of(HostKind kind) {
  constexpr std::string_view kNames[] = {"all_reduce", "reduce_scatter", "all_gather", "broadcast",
                                         "all_to_all", "barrier",        "send",       "recv"};
  return kNames[static_cast<uint8_t>(kind)];
}

bool HostDescriptor::agrees_with(const HostDescriptor& other) const {
  return kind == other.kind && dtype == other.dtype && op == other.op && root == other.root && count == other.count;
}

void HostSlot::write(const HostDescriptor& descriptor, std::string_view tag_text) {
  const uint64_t value = static_cast<uint64_t>(descriptor.kind) | static_cast<uint64_t>(descriptor.dtype) << 8 |
                         static_cast<uint64_t>(descriptor.op) << 16 | static_cast<uint64_t>(descriptor.source) << 24 |
                         static_cast<uint64_t>(static_cast<uint32_t>(descriptor.root)) << 32;
  packed.store(value, std::memory_order_relaxed);
  count.store(static_cast<uint64_t>(descriptor.count), std::memory_order_relaxed);
  address_rank.store(static_cast<uint64_t>(descriptor.address.rank), std::memory_order_relaxed);
  address_offset.store(static_cast<uint64_t>(descriptor.address.offset), std::memory_order_relaxed);
  tag.store(tag_text);
}

HostDescriptor HostSlot::read() const {
  const uint64_t value = packed.load(std::memory_order_relaxed);
  HostDescriptor descriptor;
  descriptor.kind = static_cast<HostKind>(value & 0xff);
  descriptor.dtype = static_cast<DType>(value >> 8 & 0xff);
  descriptor.op = static_cast<ReduceOp>(value >> 16 & 0xff);
  descriptor.source = static_cast<HostSource>(value >> 24 & 0xff);
  descriptor.root = static_cast<int32_t>(value >> 32);
  descriptor.count = static_cast<int64_t>(count.load(std::memory_order_relaxed));
  descriptor.address.rank = static_cast<int>(address_rank.load(std::memory_order_relaxed));
  descriptor.address.offset = static_cast<int64_t>(address_offset.load(std::memory_order_relaxed));
  return descriptor;
}

}  // namespace deepscale
