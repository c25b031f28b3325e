// How many requests of which size a disk wants: found by measuring for less than a second, remembered per disk.
//
//   AsyncFileQueue queue(tuned_io(folder).settings.queue_options());
//
// [Note: what is measured] A temporary file of 64 MiB in the folder is written once, then every candidate reads and
// writes it past the page cache for 40 ms each way; the best one is measured twice more against the default, because 40
// ms are short. It is taken when it moves bytes both ways at least 5 % faster than the default did. A disk below 500
// MB/s is kept busy by any of the candidates, so it gets the default at once. The answer stands in
// <user_cache_folder()>/io_<hash of the disk>.json, with the version of this program that measured; a file that is
// damaged, of another disk, or of another version counts for nothing and is replaced (as a whole, so that processes at
// the same time read one or the other). DEEPSCALE_IO_CALIBRATION: off (the default settings, nothing is measured),
// again (what is remembered counts for nothing); default: on. Threads: any. Of processes that ask at the same time for
// a disk that nobody knows, one measures and the others wait for its answer.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

#include "platform/async_file.h"

namespace deepscale {

struct IoSettings {
  int depth = AsyncFileOptions().depth;
  int64_t block_bytes = AsyncFileOptions().block_bytes;

  bool operator==(const IoSettings&) const = default;
  [[nodiscard]] AsyncFileOptions queue_options() const { return {.depth = depth, .block_bytes = block_bytes}; }
};

/// What a queue accepts that comes nearest to these numbers (both at least 1): blocks of whole pages up to 1 GiB, at
/// most 4096 of them under way.
AsyncFileOptions queue_options_near(int64_t depth, int64_t block_bytes);

struct IoCalibration {
  IoSettings settings;
  double read_bytes_per_s = 0;   ///< with these settings, as the short measurement saw it; 0: not measured
  double write_bytes_per_s = 0;  ///< the same
  bool remembered = false;       ///< from an earlier run
  double seconds = 0;            ///< what measuring took now
  std::string reason;            ///< why the default settings are in force; empty when a measurement has chosen
};

/// What suits the disk of `folder` (which must exist). Never throws for what the disk or the folder cannot do: the
/// answer is then the default, with the reason; opening files there will say more. Throws ConfigError for an unknown
/// DEEPSCALE_IO_CALIBRATION.
IoCalibration tuned_io(const std::string& folder);

// The parts, for tests.
namespace io_calibration {

enum class Mode : uint8_t {
  kOn,
  kOff,    ///< the default settings, nothing is measured
  kAgain,  ///< what is remembered counts for nothing
};
/// "on", "off", "again". Throws ConfigError.
Mode parse_mode(const std::string& text);
/// tuned_io without the environment. No cache folder: nothing is remembered.
IoCalibration tuned(const std::string& folder, Mode mode, const std::optional<std::string>& cache_folder);

/// Bytes per second of these settings, measured for about so many seconds.
using Measure = std::function<double(const IoSettings& settings, bool writing, double seconds)>;

inline constexpr double kLimitSeconds = 1.0;   ///< never more than this, as long as the disk answers
inline constexpr double kSliceSeconds = 0.04;  ///< of one measurement
inline constexpr double kGain = 1.05;          ///< by which the default must be beaten

/// The candidates; the first is the default.
std::span<const IoSettings> candidates();

/// Chooses. `spent` is the time since the beginning; the search ends early, with what it knows, when it nears the
/// limit.
IoCalibration search(const Measure& measure, const std::function<double()>& spent);

/// Measures in `folder`; throws IoError.
IoCalibration measure_folder(const std::string& folder);

/// Reads what was remembered for this disk and version; nothing when that is not a whole, sensible answer.
std::optional<IoCalibration> recall(const std::string& cache_folder, const std::string& disk);
/// Writes it. False when the folder cannot be made or written.
bool remember(const std::string& cache_folder, const std::string& disk, const IoCalibration& calibration);
/// Where.
std::string cache_file(const std::string& cache_folder, const std::string& disk);

}  // namespace io_calibration
}  // namespace deepscale
