#include "platform/line_tail.h"

#include <algorithm>
#include <fstream>

#include "platform/files.h"

namespace deepscale {

void LineTail::append(std::string_view bytes) {
  for (const char byte : bytes) {
    if (byte == '\n') {
      end_line();
    } else if (byte == '\r') {
      restart_ = true;
    } else {
      if (restart_) current_.clear();
      restart_ = false;
      if (current_.size() < kMaxLineBytes) current_.push_back(byte);
    }
  }
}

void LineTail::end_line() {
  complete_.push_back(std::move(current_));
  current_.clear();
  restart_ = false;
  if (complete_.size() > max_lines_) complete_.pop_front();
}

std::vector<std::string> LineTail::lines() const {
  std::vector<std::string> all(complete_.begin(), complete_.end());
  if (!current_.empty()) all.push_back(current_);
  if (all.size() > max_lines_) all.erase(all.begin());
  return all;
}

std::vector<std::string> last_lines_of_file(const std::string& path, size_t max_lines) {
  constexpr std::streamoff kTailBytes = 64 * 1024;
  std::ifstream file(native_path(path).c_str(), std::ios::binary);
  file.seekg(0, std::ios::end);
  const std::streamoff size = file.tellg();
  file.seekg(std::max<std::streamoff>(0, size - kTailBytes));
  std::string text(static_cast<size_t>(std::min(std::max<std::streamoff>(size, 0), kTailBytes)), '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  text.resize(static_cast<size_t>(std::max<std::streamsize>(file.gcount(), 0)));
  LineTail tail(max_lines);
  tail.append(text);
  return tail.lines();
}

}  // namespace deepscale
