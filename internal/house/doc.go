// Package house holds the rules of this code base as tests, and nothing else.
//
// A rule that is only written down is broken within a week, so each rule here
// is a function that returns the places that break it, run over the whole
// module by one test and over a sample that breaks it by another: a rule that
// has gone blind fails too. There is no list of exceptions. The rules
// themselves are explained in CONTRIBUTING.md.
//
// The folder ring below holds the program that runs all tests in order and
// counts what it saw (make test).
package house
