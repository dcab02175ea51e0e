package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sample is a set of measurements of one thing, in the order they were taken.
type sample []float64

func (s sample) addTime(d time.Duration) sample {
	return append(s, float64(d)/float64(time.Millisecond))
}

// quantile is the nearest-rank quantile; 0 < q <= 1.
func (s sample) quantile(q float64) float64 {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

// between is a 95 % confidence interval of a quantile, from the ranks that a
// binomial count of smaller samples falls between (its normal approximation);
// nothing is assumed of how the samples are spread.
func (s sample) between(q float64) (low, high float64) {
	sorted := slices.Sorted(slices.Values(s))
	n := float64(len(sorted))
	half := 1.96 * math.Sqrt(n*q*(1-q))
	at := func(rank float64) float64 { return sorted[min(max(int(rank), 0), len(sorted)-1)] }
	return at(math.Floor(n*q - half)), at(math.Ceil(n*q + half))
}

// verdict compares a quantile with what it must not exceed: met or missed
// where the machine's noise leaves no doubt of it.
func (s sample) verdict(q, must float64) string {
	low, high := s.between(q)
	switch {
	case high <= must:
		return "met"
	case low > must:
		return "missed"
	case q > 0.9 && s.quantile(q) <= must:
		return "met" // the interval of a high quantile ends at the worst sample
	}
	return "too noisy"
}

// verdictLeast is verdict of what a quantile must not fall below.
func (s sample) verdictLeast(q, must float64) string {
	low, high := s.between(q)
	switch {
	case low >= must:
		return "met"
	case high < must:
		return "missed"
	}
	return "too noisy"
}

// figure is one line of the output. Times are in the unit that it names.
type figure struct {
	Figure     string  `json:"figure"`
	Hosts      int     `json:"hosts,omitempty"`
	Endpoints  int     `json:"endpoints"`
	Unit       string  `json:"unit"`
	Samples    int     `json:"samples"`
	Q1         float64 `json:"q1"`
	Median     float64 `json:"median"`
	Q3         float64 `json:"q3"`
	P99        float64 `json:"p99"`
	Must       float64 `json:"must,omitempty"` // of the median
	Goal       float64 `json:"goal,omitempty"` // of the median
	Verdict    string  `json:"verdict,omitempty"`
	MustP99    float64 `json:"must_p99,omitempty"`
	VerdictP99 string  `json:"verdict_p99,omitempty"`
	Note       string  `json:"note,omitempty"`
}

// bound is what a figure is held against; 0 is nothing.
type bound struct{ must, goal, p99 float64 }

func newFigure(name, unit string, hosts, endpoints int, s sample, b bound) figure {
	f := figure{
		Figure: name, Hosts: hosts, Endpoints: endpoints, Unit: unit, Samples: len(s),
		Q1: round(s.quantile(0.25)), Median: round(s.quantile(0.5)), Q3: round(s.quantile(0.75)), P99: round(s.quantile(0.99)),
		Must: b.must, Goal: b.goal, MustP99: b.p99,
	}
	switch {
	case b.must > 0:
		f.Verdict = s.verdict(0.5, b.must)
	case b.goal > 0:
		f.Note = "goal " + s.verdict(0.5, b.goal)
	}
	if b.p99 > 0 {
		f.VerdictP99 = s.verdict(0.99, b.p99)
	}
	return f
}

// newRatio is a figure of ratios that must be least or more in the median; 0
// demands nothing.
func newRatio(name string, hosts int, s sample, least float64) figure {
	f := newFigure(name, "x", hosts, 0, s, bound{})
	if f.Must = least; least > 0 {
		f.Verdict = s.verdictLeast(0.5, least)
	}
	low, high := s.between(0.5)
	f.Note = fmt.Sprintf("%.3f to %.3f", low, high)
	return f
}

func round(v float64) float64 { return math.Round(v*1000) / 1000 }

// printer writes figures as they come and keeps them for the table.
type printer struct {
	w    io.Writer
	rows []figure
}

func (p *printer) line(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode figure: %w", err)
	}
	_, err = fmt.Fprintf(p.w, "%s\n", b)
	return err
}

func (p *printer) figure(f figure) error {
	p.rows = append(p.rows, f)
	return p.line(f)
}

// machine says where the figures were taken.
func (p *printer) machine() error {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return fmt.Errorf("read kernel's release: %w", err)
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return fmt.Errorf("read load: %w", err)
	}
	return p.line(map[string]any{
		"machine": unix.ByteSliceToString(u.Machine[:]), "kernel": unix.ByteSliceToString(u.Release[:]), "cpus": runtime.NumCPU(),
		"load": strings.Join(strings.Fields(string(load))[:3], " "), "time": time.Now().UTC().Format(time.RFC3339),
	})
}

func (p *printer) table() {
	const format = "%-32s %5s %9s %5s  %9s %9s %9s %9s  %6s %-9s %6s %s\n"
	fmt.Fprintf(p.w, "\n"+format, "FIGURE", "HOSTS", "ENDPOINTS", "UNIT", "Q1", "MEDIAN", "Q3", "P99", "MUST", "VERDICT", "P99<=", "VERDICT")
	num := func(v float64) string {
		if v == 0 {
			return ""
		}
		return fmt.Sprintf("%g", v)
	}
	for _, f := range p.rows {
		fmt.Fprintf(p.w, format, f.Figure, num(float64(f.Hosts)), fmt.Sprint(f.Endpoints), f.Unit,
			fmt.Sprintf("%.2f", f.Q1), fmt.Sprintf("%.2f", f.Median), fmt.Sprintf("%.2f", f.Q3), fmt.Sprintf("%.2f", f.P99),
			num(f.Must), f.Verdict, num(f.MustP99), strings.TrimSpace(f.VerdictP99+" "+f.Note))
	}
}
