#include "memory/io_calibration.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "base/environment.h"
#include "base/error.h"
#include "base/hash.h"
#include "platform/disk_identity.h"
#include "platform/disk_space.h"
#include "platform/file_lock.h"
#include "platform/files.h"
#include "platform/private_memory.h"
#include "platform/random.h"

namespace deepscale {
namespace io_calibration {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
constexpr int64_t kFileBytes = 64 * kMiB;
constexpr int64_t kBufferBytes = 32 * kMiB;  // the most that a candidate has under way
constexpr double kFastBytesPerS = 500e6;
constexpr double kSearchSeconds = 0.6;  // then no new candidate; what follows needs at most the rest of kLimitSeconds

constexpr std::array<IoSettings, 6> kCandidates = {{
    {32, kMiB},
    {8, kMiB},
    {32, kMiB / 4},
    {128, kMiB / 4},
    {8, 4 * kMiB},
    {4, 2 * kMiB},
}};
static_assert(std::ranges::all_of(kCandidates,
                                  [](const IoSettings& s) { return s.depth * s.block_bytes <= kBufferBytes; }));

class Stopwatch {
 public:
  [[nodiscard]] double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

/// A temporary file, and transfers through a ring of buffers.
class Probe {
 public:
  explicit Probe(const std::string& folder)
      : queue_({.depth = 128, .block_bytes = 4 * kMiB}),
        file_(queue_.open_temporary(folder, FileCaching::kDirect)),
        memory_(kBufferBytes) {
    file_.preallocate(kFileBytes);
    // Contents that no layer beneath can take for a run of zeros.
    for (int64_t i = 0; i < kBufferBytes; i += 8) {
      const auto value = static_cast<uint64_t>(i + 1) * 0x9e3779b97f4a7c15u;
      std::copy_n(reinterpret_cast<const char*>(&value), 8, memory_.data() + i);
    }
  }

  [[nodiscard]] bool direct() const { return file_.direct(); }

  /// Moves bytes of the file, from its beginning over and over, until the time is over or `limit_bytes` are moved.
  /// Returns bytes per second, and how many in `moved_bytes`.
  double run(const IoSettings& settings, bool writing, double seconds, int64_t limit_bytes, int64_t& moved_bytes) {
    std::vector<std::optional<FileTransfer>> slots(static_cast<size_t>(settings.depth));
    const Stopwatch watch;
    int64_t started = 0;
    for (size_t slot = 0; started < limit_bytes && watch.seconds() < seconds; slot = (slot + 1) % slots.size()) {
      if (slots[slot]) slots[slot]->wait();
      char* const data = memory_.data() + static_cast<int64_t>(slot) * settings.block_bytes;
      const int64_t offset = started % kFileBytes;
      slots[slot] =
          writing ? file_.write(offset, data, settings.block_bytes) : file_.read(offset, data, settings.block_bytes);
      started += settings.block_bytes;
    }
    for (auto& transfer : slots) {
      if (transfer) transfer->wait();
    }
    moved_bytes = started;
    return static_cast<double>(started) / watch.seconds();
  }

 private:
  AsyncFileQueue queue_;
  AsyncFile file_;
  PrivateMemory memory_;
};

struct Result {
  IoSettings settings;
  double read_s_per_byte = 0, write_s_per_byte = 0;  // sums over the measurements
  int measurements = 0;

  void add(const Measure& measure) {
    read_s_per_byte += 1 / measure(settings, /*writing=*/false, kSliceSeconds);
    write_s_per_byte += 1 / measure(settings, /*writing=*/true, kSliceSeconds);
    ++measurements;
  }
  /// For a byte there and back.
  [[nodiscard]] double seconds_per_byte() const { return (read_s_per_byte + write_s_per_byte) / measurements; }
};

IoCalibration answer(const Result& result) {
  IoCalibration calibration;
  calibration.settings = result.settings;
  calibration.read_bytes_per_s = result.measurements / result.read_s_per_byte;
  calibration.write_bytes_per_s = result.measurements / result.write_s_per_byte;
  return calibration;
}

nlohmann::json to_json(const std::string& disk, const IoCalibration& calibration) {
  return {{"version", DEEPSCALE_VERSION},
          {"disk", disk},
          {"depth", calibration.settings.depth},
          {"block_bytes", calibration.settings.block_bytes},
          {"read_bytes_per_s", calibration.read_bytes_per_s},
          {"write_bytes_per_s", calibration.write_bytes_per_s},
          {"reason", calibration.reason}};
}

}  // namespace

std::span<const IoSettings> candidates() {
  return kCandidates;
}

IoCalibration search(const Measure& measure, const std::function<double()>& spent) {
  std::vector<Result> results;
  for (const IoSettings& candidate : kCandidates) {
    if (!results.empty() && spent() > kSearchSeconds) break;
    results.push_back({candidate});
    results.back().add(measure);
  }
  Result& standard = results.front();
  Result& best = *std::min_element(results.begin(), results.end(), [](const Result& a, const Result& b) {
    return a.seconds_per_byte() < b.seconds_per_byte();
  });
  for (int round = 0; round < 2 && &best != &standard && spent() < kSearchSeconds; ++round) {
    standard.add(measure);
    best.add(measure);
  }
  const bool better = best.seconds_per_byte() * kGain < standard.seconds_per_byte();
  return answer(better ? best : standard);
}

IoCalibration measure_folder(const std::string& folder) {
  const auto space = disk_space(folder);
  DS_CHECK_AS(IoError, !space || space->available_bytes >= 10 * kFileBytes,
              "cannot measure the disk of {}: only {} bytes are free there", folder, space->available_bytes);
  Probe probe(folder);
  DS_CHECK_AS(IoError, probe.direct(), "nothing to tune in {}: its file system has no direct access", folder);
  const Stopwatch watch;
  int64_t filled = 0;
  const double fill_rate = probe.run({8, kMiB}, /*writing=*/true, kFileBytes / kFastBytesPerS, kFileBytes, filled);
  int64_t ignored = 0;
  IoCalibration calibration;
  if (filled < kFileBytes || fill_rate < kFastBytesPerS) {
    calibration.write_bytes_per_s = fill_rate;
    calibration.read_bytes_per_s = probe.run({8, kMiB}, /*writing=*/false, 2 * kSliceSeconds, filled, ignored);
    calibration.reason = fmt::format("the disk writes {:.0f} MB/s, which any settings reach", fill_rate / 1e6);
  } else {
    const auto measure = [&](const IoSettings& settings, bool writing, double seconds) {
      return probe.run(settings, writing, seconds, INT64_MAX, ignored);
    };
    calibration = search(measure, [&] { return watch.seconds(); });
  }
  calibration.seconds = watch.seconds();
  return calibration;
}

std::string cache_file(const std::string& cache_folder, const std::string& disk) {
  return fmt::format("{}/io_{:016x}.json", cache_folder, fnv1a(disk));
}

std::optional<IoCalibration> recall(const std::string& cache_folder, const std::string& disk) {
  std::ifstream file(native_path(cache_file(cache_folder, disk)).c_str(), std::ios::binary);
  const nlohmann::json found = nlohmann::json::parse(file, nullptr, /*allow_exceptions=*/false);
  IoCalibration calibration;
  try {
    if (found.at("version") != DEEPSCALE_VERSION || found.at("disk") != disk) return std::nullopt;
    found.at("depth").get_to(calibration.settings.depth);
    found.at("block_bytes").get_to(calibration.settings.block_bytes);
    found.at("read_bytes_per_s").get_to(calibration.read_bytes_per_s);
    found.at("write_bytes_per_s").get_to(calibration.write_bytes_per_s);
    found.at("reason").get_to(calibration.reason);
  } catch (const nlohmann::json::exception&) {
    return std::nullopt;
  }
  // Nothing but what search() can have chosen: the file may have been edited or damaged.
  if (std::ranges::find(kCandidates, calibration.settings) == kCandidates.end()) return std::nullopt;
  calibration.remembered = true;
  return calibration;
}

bool remember(const std::string& cache_folder, const std::string& disk, const IoCalibration& calibration) {
  const std::string path = cache_file(cache_folder, disk);
  std::string work;
  try {
    make_directories(cache_folder);
    work = path + "." + random_token() + ".tmp";  // other processes may be writing theirs
    std::ofstream file(native_path(work).c_str(), std::ios::binary);
    file << to_json(disk, calibration).dump(2) << '\n';
    file.close();
    if (file.good()) {
      rename_file(work, path);
      return true;
    }
  } catch (const IoError&) {
    // The next run measures again, then.
  }
  if (!work.empty()) remove_file(work);
  return false;
}

/// Nothing when the cache folder cannot have locks.
std::optional<FileLock> lock_disk(const std::string& cache_folder, const std::string& disk) {
  constexpr auto kPatience = std::chrono::seconds(5);  // several times what a measurement takes
  try {
    make_directories(cache_folder);
  } catch (const IoError&) {
    return std::nullopt;
  }
  return FileLock::acquire(cache_file(cache_folder, disk) + ".lock", kPatience);
}

Mode parse_mode(const std::string& text) {
  if (text == "on") return Mode::kOn;
  if (text == "off") return Mode::kOff;
  DS_CHECK_AS(ConfigError, text == "again",
              "DEEPSCALE_IO_CALIBRATION={}: must be on, off or again; correct or unset it", text);
  return Mode::kAgain;
}

IoCalibration tuned(const std::string& folder, Mode mode, const std::optional<std::string>& cache_folder) {
  IoCalibration calibration;
  if (mode == Mode::kOff) {
    calibration.reason = "DEEPSCALE_IO_CALIBRATION=off";
    return calibration;
  }
  const std::string disk = disk_identity(folder);
  const bool can_remember = cache_folder && !disk.empty();
  if (can_remember && mode == Mode::kOn) {
    if (const auto known = recall(*cache_folder, disk)) return *known;
  }
  // Ranks that measure at the same time would measure each other: the first one does it for all.
  const auto lock = can_remember ? lock_disk(*cache_folder, disk) : std::nullopt;
  if (lock && mode == Mode::kOn) {
    if (const auto known = recall(*cache_folder, disk)) return *known;
  }
  try {
    calibration = measure_folder(folder);
  } catch (const IoError& error) {
    calibration.reason = error.what();  // not remembered: it may pass
    return calibration;
  }
  if (can_remember) (void)remember(*cache_folder, disk, calibration);
  return calibration;
}

}  // namespace io_calibration

AsyncFileOptions queue_options_near(int64_t depth, int64_t block_bytes) {
  constexpr int64_t kPage = 4096;
  constexpr int64_t kMostDepth = 4096;
  constexpr int64_t kMostBytes = int64_t{1} << 30;
  return {.depth = static_cast<int>(std::clamp<int64_t>(depth, 1, kMostDepth)),
          .block_bytes = (std::clamp<int64_t>(block_bytes, 1, kMostBytes) + kPage - 1) / kPage * kPage};
}

IoCalibration tuned_io(const std::string& folder) {
  const auto mode = io_calibration::parse_mode(environment("DEEPSCALE_IO_CALIBRATION").value_or("on"));
  return io_calibration::tuned(folder, mode, user_cache_folder());
}

}  // namespace deepscale
