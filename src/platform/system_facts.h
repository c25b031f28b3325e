// What a report says about the system beneath a program. Cheap: small files (Windows: the registry); asks no driver.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace deepscale {

/// "Debian GNU/Linux 12 (bookworm)", "Windows 10.0.19045"; empty when it cannot be found out.
std::string operating_system_name();

/// The C library that this process runs with: "glibc 2.36", "ucrt".
std::string c_library();

/// NVIDIA GPUs by name, as their driver lists them; empty without a driver. A container may see fewer than these.
std::vector<std::string> gpu_names();

/// Version of NVIDIA's driver; nothing when it is not loaded.
std::optional<std::string> gpu_driver_version();

}  // namespace deepscale
