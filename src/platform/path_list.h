// The character between the folders of variables like PATH and PYTHONPATH.
#pragma once

namespace deepscale {

#ifdef _WIN32
inline constexpr char kPathListSeparator = ';';
#else
inline constexpr char kPathListSeparator = ':';
#endif

}  // namespace deepscale
