// What ds_report shows: operators, versions and this machine. Gathering (report_python.cpp, report_machine.cpp), and
// printing (report_format.cpp) are apart, so that --json and the table say the same. docs/report.md lists the keys.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

namespace deepscale {

/// One operator by DeepSpeed's name.
struct OperatorRow {
  std::string name;
  bool built = false;   ///< part of this package; operators are never compiled later
  bool usable = false;  ///< works on this machine
  std::string why_not;  ///< empty when usable
};

/// "name ..... text" for people, `key` and `value` for programs, and a warning that belongs to it.
struct ReportLine {
  using Missing = std::monostate;
  using Value = std::variant<Missing, std::string, int64_t, bool, std::vector<std::string>>;

  std::string key;   ///< "section.name" of the JSON object
  std::string name;  ///< empty: only for programs
  Value value;
  std::string text;     ///< empty: made from the value
  std::string warning;  ///< what is wrong and what to do; empty when nothing is
};

struct Report {
  std::vector<OperatorRow> operators;
  std::vector<ReportLine> environment;
  bool import_failed = false;  ///< kImport only: torch or this package cannot be imported
};

enum class PythonCheck : uint8_t {
  kFilesOnly,  ///< find packages and read their version files; imports nothing
  kImport,     ///< also import torch and this package and say what fails (seconds)
};

Report make_report(PythonCheck check);

/// The compiled part of the installed Python package, which holds all operators.
struct NativePart {
  bool present = false;  ///< for some version of torch
  std::string problem;   ///< why it cannot be used here; empty when it can
};

/// The parts of make_report.
std::vector<OperatorRow> operator_rows(const NativePart& native);
std::vector<ReportLine> python_lines(PythonCheck check, bool& import_failed, NativePart& native);
std::vector<ReportLine> machine_lines();

/// Why ranks of this machine cannot share memory; empty when they can.
std::string shared_memory_problem();

struct ReportView {
  bool operators = true;
  bool warnings = true;
  bool colors = false;
};
std::string format_report(const Report& report, const ReportView& view);
/// One object. `view` leaves the same parts out as in the text.
std::string format_report_json(const Report& report, const ReportView& view);

}  // namespace deepscale
