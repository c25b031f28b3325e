// Facts about this machine and this program that start-up decisions need. Cheap: files of /proc, /sys and /dev only.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

/// This machine's host name.
std::string host_name();

/// Logical CPUs this process may run on, ascending.
std::vector<int> usable_cpus();

/// NVIDIA GPUs this process can open (device files, so containers count right); asks no driver.
int visible_gpu_count();

/// The running executable, symbolic links resolved.
std::filesystem::path executable_path();

/// `program` as an executable file: itself when it contains a separator, else the first match in PATH.
std::optional<std::filesystem::path> find_program(const std::string& program);

/// Whether standard output, or what errors are written to, is a terminal.
bool output_is_terminal();
bool error_output_is_terminal();

/// All environment variables of this process.
std::map<std::string, std::string> environment_variables();

/// Whether the file can be read by this process.
bool is_readable(const std::filesystem::path& path);

/// Bytes of main memory, and of the file system behind shared memory (0 when there is none).
int64_t total_memory_bytes();
int64_t shared_memory_bytes();

/// What follows the program's name on the command line of main(count, values), in UTF-8. Windows' own values are in the
/// user's code page, which lacks most letters.
std::vector<std::string> program_arguments(int count, char** values);

/// Where an installation whose programs lie in `folder` has its Python interpreter, most likely place first, then names
/// to look for in PATH. Windows: programs lie in Scripts, beside python.exe in a virtual environment and below it
/// elsewhere; in PATH "python3" is as a rule a program that only opens the shop, so that "python" comes first.
std::vector<std::string> python_candidates(const std::string& folder);

/// "Linux 6.1.0-13-amd64 x86_64".
std::string system_description();

}  // namespace deepscale
