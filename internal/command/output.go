package command

// head keeps the first limit bytes written to it.
type head struct {
	data      []byte
	limit     int
	overflown bool
}

func (h *head) Write(p []byte) (int, error) {
	room := h.limit - len(h.data)
	if len(p) > room {
		h.overflown = true
	}
	h.data = append(h.data, p[:min(len(p), room)]...)
	return len(p), nil
}

// tail keeps the last limit bytes written to it.
type tail struct {
	data  []byte
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.data = append(t.data, p[max(0, len(p)-t.limit):]...)
	if excess := len(t.data) - t.limit; excess > 0 {
		t.data = append(t.data[:0], t.data[excess:]...)
	}
	return len(p), nil
}
