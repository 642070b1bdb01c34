// A browser starts no worker for a page that is opened from disk; there the search's worker runs in a hidden frame.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.title = "search"
      frame.addEventListener("load", () => {
        const inside = frame.contentWindow
        // What the worker posts arrives here as a message of this object.
        inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
        const script = inside.document.createElement("script")
        script.addEventListener("load", () => {
          this.inside = inside
          this.waiting.forEach(data => this.postMessage(data))
        })
        script.src = url
        inside.document.body.append(script)
      }, { once: true })
      frame.srcdoc = "<!doctype html><title>search</title>"
      document.body.append(frame)
    }

    postMessage(data) {
      if (this.inside) this.inside.dispatchEvent(new MessageEvent("message", { data }))
      else this.waiting.push(data)
    }
  }
}
