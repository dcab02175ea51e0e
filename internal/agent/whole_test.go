package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

// TestMessagesComeWhole: a message whose prefix and body are written apart is
// read in one piece, and its bytes are those that were written.
func TestMessagesComeWhole(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		var want [][]byte
		for range rapid.IntRange(0, 8).Draw(t, "messages") {
			n := rapid.OneOf(rapid.IntRange(0, 64), rapid.IntRange(messageBuf-8, messageBuf+8)).Draw(t, "length")
			m := binary.BigEndian.AppendUint32([]byte{0}, uint32(n))
			want = append(want, append(m, bytes.Repeat([]byte{byte(len(want) + 1)}, n)...))
		}
		r, w := io.Pipe()
		go func() {
			for _, m := range want {
				_, _ = w.Write(m[:prefixLen])
				_, _ = w.Write(m[prefixLen:])
			}
			w.Close()
		}()
		m := newMessages(r)
		defer m.Close()
		buf := make([]byte, rapid.SampledFrom([]int{1, 3, 512, 32 << 10}).Draw(t, "buffer"))
		var got []byte
		for i := 0; ; {
			n, err := m.Read(buf)
			got = append(got, buf[:n]...)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if i < len(want) && len(want[i]) <= min(len(buf), messageBuf) {
				if !bytes.Equal(buf[:n], want[i]) {
					t.Fatalf("read %d of %d bytes of message %d", n, len(want[i]), i)
				}
				i++
			} else {
				i = len(want) // longer than a read: only the bytes count
			}
		}
		if all := bytes.Join(want, nil); !bytes.Equal(got, all) {
			t.Fatalf("read %d bytes, want %d", len(got), len(all))
		}
	})
}

// TestMessagesPassOthers: what is no message passes, with its end.
func TestMessagesPassOthers(t *testing.T) {
	t.Parallel()
	for _, in := range []string{"", "ab", "abcde", "\x00\x00\x00\x00\x09cut"} {
		got, err := io.ReadAll(newMessages(io.NopCloser(bytes.NewReader([]byte(in)))))
		if err != nil || string(got) != in {
			t.Errorf("read %q, %v; want %q", got, err, in)
		}
	}
}
