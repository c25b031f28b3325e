// What ds_report shows: operators, versions and this machine. Gathering and printing are apart, so that --json and the
// table say the same.
#pragma once

#include <string>
#include <vector>

namespace deepscale {

/// One operator by DeepSpeed's name.
struct OperatorRow {
  std::string name;
  bool built = false;   ///< part of this package; operators are never compiled later
  std::string why_not;  ///< empty when built
};

/// "name ..... value", and a warning that belongs to it.
struct ReportLine {
  std::string name;
  std::string value;
  std::string warning;
};

struct Report {
  std::vector<OperatorRow> operators;
  std::vector<ReportLine> environment;
};

enum class PythonCheck : uint8_t {
  kFilesOnly,  ///< find packages and read their version files; imports nothing
  kImport,     ///< also import torch and the extension and say what fails (seconds)
};

Report make_report(PythonCheck check);

struct ReportView {
  bool operators = true;
  bool warnings = true;
  bool colors = false;
};
std::string format_report(const Report& report, const ReportView& view);
std::string format_report_json(const Report& report);

}  // namespace deepscale
