#include "comm/torch_positions.h"

#include <c10/util/Exception.h>
#include <fmt/core.h>

#include <algorithm>
#include <optional>
#include <thread>
#include <vector>

namespace deepscale {
namespace {

constexpr std::chrono::milliseconds kPatience{2000};
constexpr std::chrono::milliseconds kPollInterval{20};

std::string key_of(int rank) {
  return fmt::format("deepscale/failed_at/{}", rank);
}

std::string others_positions(ProcessGroup& group) {
  std::vector<std::optional<std::string>> found(static_cast<size_t>(group.size()));
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  for (;;) {
    bool complete = true;
    for (int rank = 0; rank < group.size(); ++rank) {
      auto& text = found[static_cast<size_t>(rank)];
      if (rank != group.rank() && !text) text = group.look_up(key_of(rank));
      complete = complete && (rank == group.rank() || text);
    }
    if (complete || std::chrono::steady_clock::now() > deadline) break;
    std::this_thread::sleep_for(kPollInterval);
  }
  std::string text;
  for (int rank = 0; rank < group.size(); ++rank) {
    if (rank == group.rank()) continue;
    const auto& position = found[static_cast<size_t>(rank)];
    text += position ? fmt::format("; rank {} failed at {}", rank, *position)
                     : fmt::format("; rank {} has not reported (it has died, or it is not in an operation)", rank);
  }
  return text;
}

}  // namespace

std::string TorchPosition::text() const {
  const std::string of = tag.empty() ? std::string() : fmt::format(" of '{}'", tag);
  return fmt::format("{}{} (#{}, {} x {})", kind, of, sequence, at::toString(dtype), numel);
}

std::string reason_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  std::string text = torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
  const auto end = text.find_last_not_of(" \n\r");
  text.resize(end == std::string::npos ? 0 : end + 1);
  return text;
}

std::string explain_failure(ProcessGroup& group, const TorchPosition& position, std::chrono::milliseconds waited,
                            const std::string& reason) noexcept {
  try {
    const bool published = group.publish(key_of(group.rank()), position.text());
    return fmt::format("rank {} of {}: {} failed after {:.1f} s (timeout {:.1f} s): {}{}", group.rank(), group.size(),
                       position.text(), static_cast<double>(waited.count()) / 1000,
                       static_cast<double>(group.timeout().count()) / 1000, reason,
                       published ? others_positions(group)
                                 : std::string("; the group has no store that could tell "
                                               "where the other ranks are"));
  } catch (...) {
    return reason;
  }
}

}  // namespace deepscale
