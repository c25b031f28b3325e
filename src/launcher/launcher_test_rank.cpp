// The program that launcher tests run as ranks: does what its arguments say, one after the other.
//   env FILE        writes RANK's environment and arguments to FILE<rank>
//   say TEXT, complain TEXT      to standard output, error
//   sleep MS        exit CODE        forever        die (as if killed)
//   only RANK       ends well on all other ranks        only_exit RANK CODE   ends that rank
//   pid FILE ROLE   appends "ROLE number start" to FILE (ProcessIdentity)
//   ignore          requests to stop      polite FILE  writes FILE<rank> on such a request and ends well
//   helper FILE     starts a helper in a session of its own, which ignores requests and appends its number to FILE
//   touch FILE      makes FILE<rank>      await FILE   waits until FILE is there
#include <fmt/core.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "base/environment.h"
#include "platform/machine.h"
#include "platform/resources.h"
#include "platform/test_escape.h"

namespace deepscale {
namespace {

std::string rank() {
  return environment("RANK").value_or("");
}

volatile std::sig_atomic_t g_stop = 0;  // all that a signal handler may touch

void append_line(const std::string& path, const std::string& line) {
  std::ofstream(path, std::ios::app) << line + "\n" << std::flush;  // one write: several processes append
}

void write_environment(const std::string& path, const std::vector<std::string>& arguments) {
  std::ofstream file(path + rank());
  for (const char* name : {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", "MASTER_ADDR",
                           "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "DEEPSPEED_RESTART_COUNT"}) {
    file << name << '=' << environment(name).value_or("") << '\n';
  }
  for (const std::string& argument : arguments) file << "argument=" << argument << '\n';
}

class Script {
 public:
  explicit Script(std::vector<std::string> words) : words_(std::move(words)) {}

  int run() {
    while (next_ < words_.size()) {
      const std::string word = take();
      if (word.starts_with("--local_rank=")) continue;
      if (word == "exit") return std::stoi(take());
      if (word == "only" && take() != rank()) return 0;
      if (word == "only_exit") {
        const bool mine = take() == rank();
        const int code = std::stoi(take());
        if (mine) return code;
        continue;
      }
      act(word);
    }
    return 0;
  }

 private:
  std::string take() { return next_ < words_.size() ? words_[next_++] : std::string(); }

  void act(const std::string& word) {
    if (word == "env") {
      write_environment(take(), words_);
    } else if (word == "say") {
      fmt::print("{}\n", take());
      std::fflush(stdout);
    } else if (word == "complain") {
      fmt::print(stderr, "{}\n", take());
    } else if (word == "sleep") {
      std::this_thread::sleep_for(std::chrono::milliseconds(std::stoi(take())));
    } else if (word == "forever") {
      wait_for_ever();
    } else if (word == "die") {
      kill_oneself();
    } else if (word == "pid") {
      const std::string path = take();
      const ProcessIdentity self = this_process();
      append_line(path, fmt::format("{} {} {}", take(), self.pid, self.start_time));
    } else if (word == "ignore") {
      on_stop_requests(SIG_IGN);
    } else if (word == "polite") {
      polite_file_ = take() + rank();
      on_stop_requests([](int) { g_stop = 1; });
    } else if (word == "helper") {
      start_escapee({executable_path().string(), "ignore", "pid", take(), "helper", "forever"});
    } else if (word == "await") {
      const std::string path = take();
      while (!std::ifstream(path)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    } else if (word == "touch") {
      std::ofstream(take() + rank()) << "here\n";
    }
  }

  void wait_for_ever() {
    for (;;) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      if (g_stop == 0) continue;
      std::ofstream(polite_file_) << "saved\n";
      std::exit(0);
    }
  }

  std::vector<std::string> words_;
  size_t next_ = 0;
  std::string polite_file_;
};

}  // namespace
}  // namespace deepscale

int main(int count, char** values) {
  return deepscale::Script(deepscale::program_arguments(count, values)).run();
}
