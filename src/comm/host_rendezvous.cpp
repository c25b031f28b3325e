#include "comm/host_rendezvous.h"

#include <condition_variable>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <sstream>
#include <thread>

#include "base/error.h"
#include "base/hash.h"
#include "base/wait.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {

struct ThreadRendezvous::State {
  explicit State(int size) : parts(static_cast<size_t>(size)) {}

  std::mutex mutex;
  std::condition_variable changed;
  std::vector<std::string> parts;  // of the exchange under way
  std::vector<std::string> last;   // of the one before
  size_t arrived = 0;
  uint64_t round = 0;
  std::string failure;
};

ThreadRendezvous::ThreadRendezvous(int size) : state_(std::make_shared<State>(size)) {}

HostRendezvous ThreadRendezvous::of_rank(int rank) const {
  return [state = state_, rank](std::string part) {
    std::unique_lock lock(state->mutex);
    if (!state->failure.empty()) throw CommError("the rendezvous has ended: " + state->failure);
    const uint64_t round = state->round;
    state->parts[static_cast<size_t>(rank)] = std::move(part);
    if (++state->arrived == state->parts.size()) {
      // Nobody can begin the next exchange but one before everybody has taken this result.
      state->last = state->parts;
      state->arrived = 0;
      ++state->round;
      state->changed.notify_all();
    } else {
      wait_until_true(state->changed, lock, [&] { return state->round != round || !state->failure.empty(); });
    }
    if (state->round == round) throw CommError("the rendezvous has ended: " + state->failure);
    return state->last;
  };
}

void ThreadRendezvous::fail(const std::string& cause) const {
  const std::lock_guard lock(state_->mutex);
  if (state_->failure.empty()) state_->failure = cause;
  state_->changed.notify_all();
}

namespace {
namespace fs = std::filesystem;
using std::chrono::steady_clock;

std::string folder_prefix() {
  return fmt::format("deepscale-{}-", this_user_id());
}

fs::path rendezvous_folder(const std::string& key) {
  return runtime_folder() / fmt::format("{}{:016x}", folder_prefix(), fnv1a(key));
}

std::string utf8(const fs::path& path) {
  const std::u8string text = path.u8string();
  return {text.begin(), text.end()};
}

/// The process that wrote a part; pid 0 when the file is none.
ProcessIdentity read_writer(std::istream& file) {
  ProcessIdentity writer;
  if (!(file >> writer.pid >> writer.start_time) || file.get() != '\n') return {};
  return writer;
}

/// Removes folders that killed runs have left: those that hold parts, all of them by processes that are gone.
void remove_leftovers(const fs::path& spared) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(runtime_folder(), ignored)) {
    if (!entry.path().filename().string().starts_with(folder_prefix()) || !entry.is_directory(ignored) ||
        entry.path() == spared) {
      continue;
    }
    bool abandoned = false;
    for (const auto& part : fs::directory_iterator(entry.path(), ignored)) {
      std::ifstream file(part.path(), std::ios::binary);
      const ProcessIdentity writer = read_writer(file);
      abandoned = writer.pid != 0 && !is_alive(writer);
      if (!abandoned) break;
    }
    if (abandoned) fs::remove_all(entry.path(), ignored);
  }
}

/// The files of one rank's part in the exchanges: "<round>.<rank>", with the writer's identity in front. Round 0
/// accepts writers that are alive, and later rounds the same writers, even when they have ended since.
class FolderRendezvous {
 public:
  FolderRendezvous(const std::string& key, int rank, int size, std::chrono::milliseconds timeout)
      : folder_(rendezvous_folder(key)), key_(key), rank_(rank), size_(size), timeout_(timeout) {}

  ~FolderRendezvous() {
    // Who is last takes the folder away. Everybody has read all parts of a round when the next one is complete, and the
    // last round's parts stay until then: a rank that ends early marks that, and removes nothing that others need.
    std::error_code ignored;
    if (round_ == 0 || this_process() != self_) return;
    try {
      write(fmt::format("end.{}", rank_), "");
    } catch (const std::exception&) {
      return;
    }
    for (int rank = 0; rank < size_; ++rank) {
      if (!read(fmt::format("end.{}", rank), rank)) return;
    }
    fs::remove_all(folder_, ignored);
  }

  std::vector<std::string> exchange(const std::string& part) {
    std::error_code ignored;
    DS_CHECK_AS(IoError, make_private_folder(folder_),
                "cannot use {} for the rendezvous: it must be a folder of this user that nobody else may write to",
                folder_.string());
    if (round_ == 0 && rank_ == 0) remove_leftovers(folder_);
    if (round_ == 0) fs::remove(folder_ / fmt::format("end.{}", rank_), ignored);
    write(fmt::format("{}.{}", round_, rank_), part);
    const auto deadline = steady_clock::now() + timeout_;
    std::vector<std::string> parts;
    for (int rank = 0; rank < size_; ++rank) {
      parts.push_back(wait_for(rank, part, deadline));
    }
    // Everybody who is in this round has read the whole of the last one.
    if (round_ > 0) fs::remove(folder_ / fmt::format("{}.{}", round_ - 1, rank_), ignored);
    ++round_;
    return parts;
  }

 private:
  std::string wait_for(int rank, const std::string& own_part, steady_clock::time_point deadline) {
    const std::string name = fmt::format("{}.{}", round_, rank);
    for (int look = 0;; ++look) {
      if (auto part = read(name, rank)) return *part;
      DS_CHECK_AS(CommError, steady_clock::now() < deadline,
                  "rank {} did not come to the rendezvous \"{}\" within {} ms: is it running, with the same key and as "
                  "the same user?",
                  rank, key_, timeout_.count());
      // Another run may have taken the folder for a leftover at the moment at which we came back to it.
      const std::string own_name = fmt::format("{}.{}", round_, rank_);
      std::error_code ignored;
      if (look % 64 == 63 && !fs::exists(folder_ / own_name, ignored)) write(own_name, own_part);
      std::this_thread::sleep_for(std::chrono::microseconds(look < 100 ? 200 : 2000));
    }
  }

  void write(const std::string& name, const std::string& part) {
    make_private_folder(folder_);
    const fs::path temporary = folder_ / fmt::format("{}.{}.new", name, self_.pid);
    {
      std::ofstream file(temporary, std::ios::binary);
      file << self_.pid << ' ' << self_.start_time << '\n' << part;
      DS_CHECK_AS(IoError, file.good(), "cannot write {}: is there space?", temporary.string());
    }
    rename_file(utf8(temporary), utf8(folder_ / name));
  }

  /// Nothing when the file is not there, or is not of this run.
  [[nodiscard]] std::optional<std::string> read(const std::string& name, int rank) {
    std::ifstream file(folder_ / name, std::ios::binary);
    const ProcessIdentity writer = read_writer(file);
    if (writer.pid == 0) return std::nullopt;
    ProcessIdentity& known = writers_[static_cast<size_t>(rank)];
    if (known.pid != 0 ? writer != known : !is_alive(writer)) return std::nullopt;
    known = writer;
    std::ostringstream part;
    part << file.rdbuf();
    return std::move(part).str();
  }

  const fs::path folder_;
  const std::string key_;
  const int rank_;
  const int size_;
  const std::chrono::milliseconds timeout_;
  const ProcessIdentity self_ = this_process();
  std::vector<ProcessIdentity> writers_ = std::vector<ProcessIdentity>(static_cast<size_t>(size_));
  uint64_t round_ = 0;
};

}  // namespace

HostRendezvous directory_rendezvous(const std::string& key, int rank, int size, std::chrono::milliseconds timeout) {
  auto folder = std::make_shared<FolderRendezvous>(key, rank, size, timeout);
  return [folder](const std::string& part) { return folder->exchange(part); };
}

}  // namespace deepscale
