// Package culvertv1 is generated from the .proto files beside it: the
// resources that users see, the records of store and stream, and the two
// services. The reasons for its shape stand in those files.
package culvertv1

//go:generate sh gen.sh
