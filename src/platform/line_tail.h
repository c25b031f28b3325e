// The last lines of a stream of bytes that arrives in pieces. A carriage return starts its line anew, as on a terminal,
// so that a progress bar counts as one line.
#pragma once

#include <cstddef>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

class LineTail {
 public:
  explicit LineTail(size_t max_lines) : max_lines_(max_lines) {}

  void append(std::string_view bytes);
  /// Oldest first; includes an unfinished last line.
  std::vector<std::string> lines() const;

 private:
  /// Longer lines are cut: the tail is for people.
  static constexpr size_t kMaxLineBytes = 2000;

  void end_line();

  size_t max_lines_;
  std::deque<std::string> complete_;
  std::string current_;
  bool restart_ = false;  // a carriage return came; the next byte begins the line again
};

/// The last lines of a file; none when it cannot be read.
std::vector<std::string> last_lines_of_file(const std::string& path, size_t max_lines);

}  // namespace deepscale
