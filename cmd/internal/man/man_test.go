package man

import (
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// What roff would take for its own is escaped, examples stand as they are.
func TestPageEscapes(t *testing.T) {
	root := &cobra.Command{Use: "prog"}
	cmd := &cobra.Command{
		Use: "do-it FILE", Short: "do it", Run: func(*cobra.Command, []string) {},
		Long:    ".dots begin no request\n'quotes neither\n\na back\\slash and --flag",
		Example: "  prog do-it 'a b' | jq '.x'\n  .hidden",
	}
	cmd.Flags().Int("retries", 3, "tries `N` times")
	cmd.Flags().Bool("secret-switch", false, "never")
	if err := cmd.Flags().MarkHidden("secret-switch"); err != nil {
		t.Fatal(err)
	}
	root.PersistentFlags().String("output", "", "format")
	root.AddCommand(cmd, &cobra.Command{Use: "other", Run: cmd.Run})
	got := string(Page(cmd, `1.0"x`))
	for _, part := range []string{
		`.TH "PROG\-DO\-IT" "1" "" "prog 1.0\(dqx"`, "\n\\&.dots begin no request\n\\(aqquotes neither\n.PP\na back\\eslash and \\-\\-flag\n",
		".nf\nprog do\\-it \\(aqa b\\(aq | jq \\(aq.x\\(aq\n\\&.hidden\n.fi", "\\fB\\-\\-retries\\fR \\fIN\\fR\ntries N times (default 3)",
		".SH GLOBAL OPTIONS\n.TP\n\\fB\\-\\-output\\fR", ".SH SEE ALSO\n\\fBprog\\fR(1), \\fBprog\\-other\\fR(1)\n", `\fBprog do\-it FILE [OPTIONS]\fR`,
	} {
		if !strings.Contains(got, part) {
			t.Errorf("no %q in\n%s", part, got)
		}
	}
	if strings.Contains(got, "secret") {
		t.Error("a hidden flag is shown")
	}
	if top := string(Page(root, "1")); !strings.Contains(top, ".SH COMMANDS\n.TP\n\\fBprog\\-do\\-it\\fR(1)\ndo it\n") {
		t.Errorf("commands:\n%s", top)
	}
}
