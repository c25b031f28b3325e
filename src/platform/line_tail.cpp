#include "platform/line_tail.h"

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

}  // namespace deepscale
