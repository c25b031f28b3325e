// FNV-1a (Fowler, Noll, Vo), 64 bits: the same value on every rank and platform. Not for anything an attacker chooses.
#pragma once

#include <cstdint>
#include <string_view>

namespace deepscale {

constexpr uint64_t fnv1a(std::string_view text) {
  uint64_t hash = 14695981039346656037u;
  for (const char byte : text) hash = (hash ^ static_cast<uint8_t>(byte)) * 1099511628211u;
  return hash;
}

}  // namespace deepscale
