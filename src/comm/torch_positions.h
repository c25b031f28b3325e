// Where a rank of a torch process group stands: kept for every operation, published only when one fails, so that the
// fast path pays nothing and an error still names the culprit.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>

#include "comm/process_group.h"

namespace deepscale {

/// One operation of one rank.
struct TorchPosition {
  uint64_t sequence = 0;
  const char* kind = "";  // string literal
  std::string tag;
  at::ScalarType dtype = at::kFloat;
  int64_t numel = 0;

  /// "all_reduce of 'layers.7' (#412, Float x 4096)"
  [[nodiscard]] std::string text() const;
};

/// Text of an error without torch's C++ backtrace.
std::string reason_of(const std::exception& error);

/// Publishes this rank's position, looks for those of the others (they fail at about the same time, so it waits up to
/// two seconds for them) and returns the whole message. Never throws.
std::string explain_failure(ProcessGroup& group, const TorchPosition& position, std::chrono::milliseconds waited,
                            const std::string& reason) noexcept;

}  // namespace deepscale
